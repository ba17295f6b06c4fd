"""The blocking client has every call of the async one, with the same arguments."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator

import pytest

from copypool import Client, sync
from copypool.drills import Drills
from copypool.insight import Insight
from copypool.loop_thread import LoopThread
from copypool.operating import Operator
from copypool.policies import Policies
from copypool.protocol.errors import Unavailable

#: Arguments that the blocking client leaves out: they are told from within the event loop, or size its pages.
_LEFT_OUT = {"progress", "page"}


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in vars(kind).items()
        if not name.startswith("_") and inspect.isfunction(member)
    }


@pytest.mark.parametrize("name", sorted(public(Client)))
def test_every_call_is_there_with_its_arguments(name: str) -> None:
    wanted = set(public(Client)[name].parameters) - _LEFT_OUT
    assert wanted <= set(public(sync.Client)[name].parameters)


@pytest.mark.parametrize(
    ("blocking", "twin"),
    [(sync.Operator, Operator), (sync.Insight, Insight), (sync.Policies, Policies), (sync.Drills, Drills)],
)
def test_every_call_of_its_parts_is_there(blocking: type, twin: type) -> None:
    assert set(inspect.getattr_static(blocking, "__init__").__code__.co_names) >= set(public(twin))


async def _double(number: int, *, plus: int = 0) -> int:
    await asyncio.sleep(0)
    return 2 * number + plus


async def _count(upto: int) -> AsyncIterator[int]:
    for number in range(upto):
        yield number


def test_calls_and_items_come_from_the_thread_until_it_ends() -> None:
    loop = LoopThread()
    try:
        assert loop.blocking(_double)(4, plus=1) == 9
        assert list(loop.iterating(_count, chunk=3)(7)) == list(range(7))
        first = loop.iterating(_count, chunk=1)(10**9)
        assert [next(first), next(first)] == [0, 1]
    finally:
        loop.stop()
    with pytest.raises(Unavailable):
        loop.blocking(_double)(1)
