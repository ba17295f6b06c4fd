"""Failing sequences played on the pure cores and on one volume, and the table that names a test for each of them."""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path
from threading import Event

import pytest

from copypool_coordinator.controllers.actions import Reserve
from copypool_coordinator.policy import Memory
from copypool_node.disk import Disk
from copypool_node.volume import Volume
from kit.extent_images import CLUSTER
from kit.toy_cluster import MIB, ToyCluster

TESTS = Path(__file__).parents[1]
TABLE = TESTS / "ATTACKS.md"
E = 7

#: Sequences of part A, and how many parts each has.
SEQUENCES = {
    "A1": 2,
    "A2": 2,
    "A3": 3,
    "A4": 1,
    "A5": 5,
    "A6": 2,
    "A7": 2,
    "A8": 4,
    "A9": 4,
    "A10": 7,
    "A11": 1,
    "A12": 3,
    "A13": 3,
    "A14": 2,
    "A15": 3,
    "A16": 3,
    "A17": 2,
    "A18": 2,
    "A19": 3,
    "A20": 2,
    "A21": 2,
}
ROMAN = ["i", "ii", "iii", "iv", "v", "vi", "vii"]


# -- A12: a new leader ------------------------------------------------------------------------------
def test_a12_iii_a_new_leader_does_not_begin_the_grace_time_anew() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.down(1)
    cluster.settle()
    cluster.wait(cluster.policy.grace_ms - 5_000)
    cluster.memory = Memory()  # another process leads, and knows what the rows say
    cluster.settle()
    assert not any(isinstance(action, Reserve) and action.volume == 2 for action in cluster.history)
    cluster.wait(5_000)
    cluster.settle()
    assert any(isinstance(action, Reserve) and action.volume == 2 for action in cluster.history)


# -- A19: two writes under way ------------------------------------------------------------------------
class Overtaking(Disk):
    """Holds the write at one offset until the next one has landed."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.landed = Event()

    def invoke(self, name, function, *args, **kwargs):  # type: ignore[no-untyped-def]
        if name == "write" and args[2] == self.offset:
            assert self.landed.wait(30.0), "the later write lands first"
        result = function(*args, **kwargs)
        if name == "write" and args[2] > self.offset:
            self.landed.set()
        return result


async def test_a19_iii_writes_that_overtake_each_other_land_at_their_own_offsets(tmp_path: Path) -> None:
    """Two threads write to one file: there is no file position that they could disturb for one another."""
    disk = Overtaking(offset=4)
    volume = await Volume.open(
        str(tmp_path), name="v", pool="primary", pool_type="primary", cluster_id=CLUSTER, disk=disk
    )
    file = await volume.create_extent(E, 1, None)
    await file.write(0, [b"0000"])
    first = asyncio.create_task(file.write(4, [b"1111"]))
    second = asyncio.create_task(file.write_and_sync(8, [b"2222"]))
    await asyncio.gather(first, second)
    assert await file.read(0, 100) == b"000011112222"
    assert file.size == 12
    await volume.close()


# -- the table ----------------------------------------------------------------------------------------
def rows() -> dict[str, list[str]]:
    """Sequence -> the tests that the table names for it."""
    found: dict[str, list[str]] = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"A\d+( \w+)?", cells[0]):
            assert cells[0] not in found, f"{cells[0]} stands twice"
            found[cells[0]] = re.findall(r"`([\w/]+\.py::\w+)`", cells[2])
    return found


def expected() -> list[str]:
    return [
        name if parts == 1 else f"{name} {ROMAN[part]}" for name, parts in SEQUENCES.items() for part in range(parts)
    ]


def test_every_sequence_stands_in_the_table_once() -> None:
    assert list(rows()) == expected()


@pytest.mark.parametrize("sequence", expected())
def test_every_sequence_has_a_test_that_exists(sequence: str) -> None:
    named = rows()[sequence]
    assert named, f"no test attacks {sequence}"
    for node in named:
        path, _, name = node.partition("::")
        tree = ast.parse((TESTS / path).read_text())
        defined = {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in defined, f"{sequence}: there is no {node}"
