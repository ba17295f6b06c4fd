"""The configuration on every volume: complete, in a fixed order, brought to each volume once (A5)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from copypool.protocol.errors import Fenced, NotLeader, Unavailable
from copypool.protocol.internal import Configuration, ConfigurationCommand
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.configuring import ConfigurationKeeper, describe
from copypool_coordinator.node_link import NodeLink
from kit.little_view import LittleView


@pytest.fixture
def little() -> LittleView:
    little = LittleView()
    little.pool(1, "primary", "primary")
    little.pool(2, "copy", "copy")
    little.extent_class(1, 1, [2])
    little.namespace("web", 4, 1)
    for node in (1, 2):
        little.node(node)
        little.volume(node * 10, node_id=node, pool_id=node)
    return little


class RecordingLink:
    """Stands for the link to the nodes: remembers commands, fails on demand."""

    def __init__(self) -> None:
        self.commands: list[tuple[int, ConfigurationCommand]] = []
        self.error: Exception | None = None

    async def send(
        self, node: int, verb: str, command: ConfigurationCommand, reply: object, *, answer_s: float
    ) -> None:
        assert verb == "configuration"
        if self.error is not None:
            raise self.error
        self.commands.append((node, command))


def keeper_of(little: LittleView, link: RecordingLink) -> ConfigurationKeeper:
    catalog = cast(Catalog, SimpleNamespace(view=little.view))
    return ConfigurationKeeper(catalog, cast(NodeLink, link), cast(LeaderGuard, SimpleNamespace(term=3)))


def test_it_tells_what_no_record_tells(little: LittleView) -> None:
    told = describe(little.view)
    assert told.namespaces == [("web", 4, 1, 0, "live")]
    assert sorted(told.pools) == [("copy", 2, "copy"), ("primary", 1, "primary")]
    assert (told.classes[0].primary_pool, told.classes[0].copy_pools) == ("primary", ["copy"])
    assert {volume[1] for volume in told.volumes} == {10, 20}
    assert {node[1] for node in told.nodes} == {1, 2}


async def test_each_volume_is_told_once_and_again_after_a_change(little: LittleView) -> None:
    link = RecordingLink()
    keeper = keeper_of(little, link)
    assert await keeper.round() == 2
    assert await keeper.round() == 0
    little.namespace("mail", 5, 1)
    assert await keeper.round() == 2
    node, command = link.commands[-1]
    assert command.volume == node * 10
    told = msgspec.msgpack.decode(command.content, type=Configuration)
    assert [each[0] for each in told.namespaces] == ["mail", "web"]


async def test_a_volume_that_did_not_answer_is_told_later(little: LittleView) -> None:
    link = RecordingLink()
    keeper = keeper_of(little, link)
    link.error = Unavailable("away")
    assert await keeper.round() == 0
    link.error = None
    assert await keeper.round() == 2


async def test_an_old_term_stops(little: LittleView) -> None:
    link = RecordingLink()
    link.error = Fenced("a higher term was seen")
    with pytest.raises(NotLeader):
        await keeper_of(little, link).round()
