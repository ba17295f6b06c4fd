"""Which coordinator is asked next, when one of them does not answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from copypool.coordinators import Coordinators
from copypool.profile import token_again
from copypool.protocol.api import Empty
from copypool.protocol.errors import CatalogDown, Unauthorized
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
    async with asyncio.timeout(60):
        await asyncio.gather(*(coordinators.call("lookup", Empty(), Empty) for _ in range(CALLERS)))
    assert transport.asked == {"frozen": CALLERS, "well": CALLERS}


class CutOffFirst:
    """A transport whose first coordinators are cut off from etcd, and say so after all the patience is used up."""

    timeouts = Timeouts()

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def send(self, method: str, url: str, *, headers: object, data: object, answer_s: float) -> Answer:
        host = urlsplit(url).hostname or ""
        self.asked.append(host)
        if host.startswith("cut"):
            raise CatalogDown("etcd does not answer")
        return Answer(200, MSGPACK, msgspec.msgpack.encode(Empty()))


async def test_one_coordinator_that_is_slow_to_say_that_etcd_is_away_is_not_the_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("copypool.coordinators.CATALOG_PATIENCE_S", 0.0)
    transport = CutOffFirst()
    coordinators = Coordinators(transport, ["http://cut", "http://well"], "token")  # type: ignore[arg-type]
    await coordinators.call("lookup", Empty(), Empty)
    assert transport.asked == ["cut", "well"]


async def test_once_all_coordinators_say_that_etcd_is_away_the_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("copypool.coordinators.CATALOG_PATIENCE_S", 0.0)
    transport = CutOffFirst()
    coordinators = Coordinators(transport, ["http://cut1", "http://cut2"], "token")  # type: ignore[arg-type]
    with pytest.raises(CatalogDown):
        await coordinators.call("lookup", Empty(), Empty)
    assert transport.asked == ["cut1", "cut2"]


class Tokens:
    """A transport whose coordinators take one token alone."""

    timeouts = Timeouts()

    def __init__(self, good: str) -> None:
        self.good = good
        self.asked: list[str] = []

    async def send(self, method: str, url: str, *, headers: dict[str, str], data: object, answer_s: float) -> Answer:
        self.asked.append(headers.get("Authorization", "").removeprefix("Bearer "))
        await asyncio.sleep(0)
        if self.asked[-1] != self.good:
            raise Unauthorized("the token was revoked")
        return Answer(200, MSGPACK, msgspec.msgpack.encode(Empty()))


def following(transport: Tokens, file: Path) -> Coordinators:
    return Coordinators(transport, ["http://c1"], file.read_text(), partial(token_again, str(file)))  # type: ignore[arg-type]


async def test_a_token_that_was_exchanged_in_its_file_is_taken_up_by_calls_under_way(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    transport = Tokens("old")
    coordinators = following(transport, file)
    await coordinators.call("lookup", Empty(), Empty)
    file.write_text("new\n")
    transport.good = "new"
    await asyncio.gather(*(coordinators.call("lookup", Empty(), Empty) for _ in range(CALLERS)))
    assert transport.asked == ["old", *["old"] * CALLERS, *["new"] * CALLERS]


async def test_a_token_that_is_refused_for_good_is_told_after_one_look(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    transport = Tokens("other")
    coordinators = following(transport, file)
    with pytest.raises(Unauthorized):
        await coordinators.call("lookup", Empty(), Empty)
    assert transport.asked == ["old"], "the file says the same"
    file.write_text("new")
    with pytest.raises(Unauthorized):
        await coordinators.call("lookup", Empty(), Empty)
    assert transport.asked == ["old", "old", "new"]
    file.unlink()
    with pytest.raises(Unauthorized):
        await coordinators.call("lookup", Empty(), Empty)
