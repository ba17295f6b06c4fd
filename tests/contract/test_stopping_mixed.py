"""A node that stops while coordinators of an older release are still, or again, there: they take no announcement."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from copypool.protocol.errors import NotFound, Unavailable, to_body
from copypool.protocol.internal import StopReply
from copypool.protocol.routes import MSGPACK, encode_body
from copypool_node.config import NodeConfig
from copypool_node.identity import Identity
from copypool_node.stopping import announce
from kit.fake_server import FakeServer

WAIT_S = 20.0


class Coordinator(FakeServer):
    """Answers `/n/stop` with its replies, the last one for ever; without any, as a release that knows no such call."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.replies: list[StopReply] = []
        self.asked = 0

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/n/stop", self._answer)]

    async def _answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        if not self.replies:
            content, kind = encode_body(to_body(NotFound("there is nothing at this path")), MSGPACK)
            return web.Response(status=404, body=content, content_type=kind)
        content, kind = encode_body(self.replies[min(self.asked, len(self.replies)) - 1], MSGPACK)
        return web.Response(body=content, content_type=kind)


@pytest.fixture
async def pair() -> AsyncIterator[list[Coordinator]]:
    found = [Coordinator("c1"), Coordinator("c2")]
    for each in found:
        await each.start()
    yield found
    for each in found:
        await each.stop()


async def announce_to(pair: list[Coordinator], wait_s: float) -> None:
    config = NodeConfig("n1", [each.url for each in pair], "/nowhere", [])
    await announce(config, None, Identity(b"c" * 16), for_s=60, wait_s=wait_s)


async def test_a_coordinator_of_this_release_is_found_behind_an_older_one(pair: list[Coordinator]) -> None:
    pair[1].replies = [StopReply([])]
    await announce_to(pair, 0.0)
    assert pair[1].asked == 1


async def test_an_older_leader_is_waited_for(pair: list[Coordinator]) -> None:
    """The newer one knows only who leads; the upgrade goes on, and then it leads."""
    older, newer = pair
    newer.replies = [StopReply([], older.url), StopReply([])]
    await announce_to(pair, WAIT_S)
    assert newer.asked == 2


async def test_an_older_leader_is_not_waited_for_beyond_the_time_for_it(pair: list[Coordinator]) -> None:
    older, newer = pair
    newer.replies = [StopReply([], older.url)]
    with pytest.raises(Unavailable, match="older release"):
        await announce_to(pair, 0.0)


async def test_where_all_are_older_the_message_says_what_to_do(pair: list[Coordinator]) -> None:
    with pytest.raises(Unavailable, match=r"older release.*copypool maintenance node n1"):
        await announce_to(pair, 0.0)
    assert all(each.asked for each in pair)
