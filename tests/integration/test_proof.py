"""Green only when proven: what is lost behind the cluster's back is found, told, healed, and only then green again."""

from __future__ import annotations

import json
import random

from copypool import Client
from kit.cluster import RealCluster
from kit.workload import NAMESPACE


async def test_a_proof_counts_files_bytes_and_copies(cluster: RealCluster, client: Client) -> None:
    body = random.Random(1).randbytes(5_000)
    for number in range(20):
        await client.put(NAMESPACE, f"proof/some/{number:02}", body)
    await client.put(NAMESPACE, "proof/empty", b"")
    await client.put(NAMESPACE, "other", b"x")
    await client.wait_copied(timeout_s=20)

    found = await client.insight.prove(namespace=NAMESPACE, prefix="proof/")
    assert (found.files, found.bytes, found.proven) == (21, 100_000, True)
    assert [(each.count, each.files, each.bytes) for each in found.copies] == [(2, 21, 100_000)]
    assert [(each.pool, each.files, each.bytes, each.missing_bytes) for each in found.pools] == [
        ("primary", 21, 100_000, 0),
        ("copy", 21, 100_000, 0),
    ]
    shown = await cluster.cli("prove", f"{NAMESPACE}/proof/some/", "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["coverage"]["files"] == 20

    whole = await client.insight.prove(pool="copy")
    assert whole.proven
    assert whole.files >= 22
    assert (await cluster.cli("prove")).out.startswith(b"PROVEN")
