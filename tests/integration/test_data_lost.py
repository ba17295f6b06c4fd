"""A block that is bad on every location: the file with it is lost, and everybody says so; its neighbours are not."""

from __future__ import annotations

import json
import random

from copypool import Client
from copypool.protocol.errors import DataLost
from copypool.protocol.stripes import BLOCK_BYTES
from kit.cluster import RealCluster, until
from kit.workload import NAMESPACE


async def test_what_is_bad_everywhere_is_called_lost_by_reads_status_lists_and_previews(
    cluster: RealCluster, client: Client
) -> None:
    whole, other = random.Random(21).randbytes(150_000), random.Random(22).randbytes(150_000)
    await client.put_many(NAMESPACE, [("lost/first", other), ("lost/bad", whole)])
    await client.wait_copied(timeout_s=60)
    (segment,) = (await client.stat(NAMESPACE, "lost/bad")).segments
    for location in segment.locations:
        assert (await cluster.cli("audit", "volume", location.volume)).code == 0, "sealed, and clean so far"
    for location in segment.locations:
        cluster.flip(location.node, segment.extent, location.offset + BLOCK_BYTES + 10_000)

    async def lost() -> bool:
        found = await cluster.cli("cat", f"{NAMESPACE}/lost/bad", "--json")
        return found.code == DataLost.exit_code and json.loads(found.err.splitlines()[-1])["code"] == DataLost.code

    await until(lost, "a read says that the bytes are lost", within_s=60)
    assert (await client.get(NAMESPACE, "lost/bad", stop=BLOCK_BYTES)) == whole[:BLOCK_BYTES], "good blocks are served"
    assert await client.get(NAMESPACE, "lost/first") == other

    shown = await client.status()
    assert any("bad on every location" in reason for reason in shown.reasons), shown.reasons

    async def outlooks() -> dict[str, str]:
        """Of files, from whichever coordinator answers."""
        listed = await cluster.cli("query", "damaged", "--files", "--json")
        named = [json.loads(line)["file"] for line in listed.out.splitlines()]
        found = {each["path"]: each["outlook"] for each in named}
        return found if found.get("lost/bad") == "lost" else {}

    by_path = await until(outlooks, "the file is listed as lost", within_s=60)
    assert by_path.get("lost/first") in (None, "doubtful"), "it may lie behind the bad block, and is not lost"

    marked = [each for each in await client.damaged() if each.extent == segment.extent]
    assert {each.volume for each in marked} == {location.volume for location in segment.locations}
    assert len({each.bad_offset for each in marked}) == 1
    assert all(str(each.bad_offset) in each.evidence for each in marked), "the offset in the extent is told"
    preview = await cluster.cli("restore", "pool", "primary", "--preview", "--json")
    told = json.loads(preview.out)
    assert (told["merged_extents"], told["blocked_extents"]) == (0, 1)
    assert "is bad on" in told["blocked"][0][3]
