"""From an older release to today's under load, with the older one's data, and the way back.

`UPGRADE_FROM` names the older commit; without it: the newest tag before HEAD, or HEAD's first parent. The workload's
clients are today's; the older release's own command line then works on the upgraded cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from copypool import Client
from drills.cluster import DrillCluster
from drills.containers import Containers
from drills.desk import Desk
from drills.layout import NAMESPACE
from drills.releases import CURRENT, NoSuchCommit, Release, older_commit, older_release
from drills.story import Drill, perform
from drills.table import Row
from drills.upgrades import Replaced, upgrade_order

SIZES_BYTES = (0, 1, 100, 4096, 70_000, 1 << 20, 5 << 20)
BACK = ("coordinator1", "node1")
MIXED_S = 5.0  #: both releases side by side, under load


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The older release's images."""
    try:
        commit = older_commit(os.environ.get("UPGRADE_FROM", ""))
    except NoSuchCommit as error:
        pytest.fail(str(error), pytrace=False)
    return older_release(commit, tmp_path_factory.mktemp("older"))


@pytest.fixture
def older_cluster(older: Release, no_shared_cluster: None) -> Iterator[DrillCluster]:
    """A cluster whose coordinators and nodes are of the older release."""
    containers = Containers(release=older)
    containers.up()
    try:
        yield DrillCluster(containers)
    finally:
        containers.close()
    assert not containers.leftovers(), f"left behind: {containers.leftovers()}"


async def test_upgrade_and_the_way_back(
    older_cluster: DrillCluster, older: Release, record: Callable[[Row], None]
) -> None:
    """Nobody notices but by new features: no read and no write fails, and what was there before is."""
    cluster = older_cluster
    order = upgrade_order(cluster.layout)
    async with cluster.client() as client:
        await keep_some(client, "before")
        await roll(cluster, "upgraded", Replaced(CURRENT, order), record)
        await keep_some(client, "after")
        await roll(cluster, "one of each back and forward", Replaced(older, BACK, back=CURRENT), record)
        await work_by_command_line(cluster, older)
        await roll(cluster, "all back and forward", Replaced(older, order, back=CURRENT), record)
        for kept in ("before", "after"):
            await find(client, kept)
        status = await client.status()
    assert {cluster.containers.releases[name] for name in order} == {CURRENT}
    assert status.healthy, status.reasons
    assert not status.lost_files
    assert not status.unavailable_files


async def roll(cluster: DrillCluster, name: str, fault: Replaced, record: Callable[[Row], None]) -> None:
    """Replace members under load and judge it: besides what every drill promises, no write fails."""
    drill = Drill(name, fault, MIXED_S if fault.back is not None else 0.0, ack="copy", on_copy_failure="continue")
    row = await perform(cluster, drill)
    record(row)
    assert not row.writes_failed, f"{row.writes_failed} writes failed: {row}"


async def work_by_command_line(cluster: DrillCluster, release: Release) -> None:
    """The older command line, as long as people have it: what today's cluster answers, it understands."""
    desk = await cluster.do(Desk, cluster.containers)
    await cluster.do(desk.copypool, release, "status")
    for kept in ("before", "after"):
        await cluster.do(desk.copypool, release, "get", f"{NAMESPACE}/upgrade/{kept}/70000", kept)
        assert (desk.folder / kept).read_bytes() == content_of(kept, 70_000)
    content = content_of("by command line", 3 << 20)
    desk.put_down("content", content)
    await cluster.do(desk.copypool, release, "put", "content", f"{NAMESPACE}/upgrade/by-command-line")
    async with cluster.client() as client:
        assert await client.get(NAMESPACE, "upgrade/by-command-line") == content


def content_of(name: str, size_bytes: int) -> bytes:
    """The same bytes whenever it is asked."""
    return (f"{name} {size_bytes}\n".encode() * (size_bytes // 8 + 1))[:size_bytes]


async def keep_some(client: Client, name: str) -> None:
    """Store files of several sizes."""
    for size_bytes in SIZES_BYTES:
        await client.put(NAMESPACE, f"upgrade/{name}/{size_bytes}", content_of(name, size_bytes))


async def find(client: Client, name: str) -> None:
    """Read what `keep_some` stored."""
    for size_bytes in SIZES_BYTES:
        found = await client.get(NAMESPACE, f"upgrade/{name}/{size_bytes}")
        assert found == content_of(name, size_bytes), f"{name}: the file of {size_bytes} bytes is another one"
