"""Which coordinator is asked next, when one of them does not answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from urllib.parse import urlsplit

import msgspec

from copypool.coordinators import Coordinators
from copypool.protocol.api import Empty
from copypool.protocol.routes import MSGPACK
from copypool.transport import Answer, LinkFailed, Timeouts

CALLERS = 8


class FrozenFirst:
    """A transport whose first coordinator is frozen: every call there ends without an answer, all at the same time."""

    timeouts = Timeouts()

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self._all_wait = asyncio.Barrier(CALLERS)

    async def send(self, method: str, url: str, *, headers: object, data: object, answer_s: float) -> Answer:
        host = urlsplit(url).hostname or ""
        self.asked[host] += 1
        if host == "frozen":
            await self._all_wait.wait()
            raise LinkFailed(f"{url} did not answer in time", "timeout", sent=True)
        return Answer(200, MSGPACK, msgspec.msgpack.encode(Empty()))


async def test_calls_that_fail_together_all_leave_a_frozen_coordinator() -> None:
    transport = FrozenFirst()
    coordinators = Coordinators(transport, ["http://frozen", "http://well"], "token")  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await asyncio.gather(*(coordinators.call("lookup", Empty(), Empty) for _ in range(CALLERS)))
    assert transport.asked == {"frozen": CALLERS, "well": CALLERS}
