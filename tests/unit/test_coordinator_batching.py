"""Joined calls: who shares a call with whom, what one failure or cancellation does to the others, and the
bounds (invariant 9)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from copypool.cancellation import TaskGroup
from copypool.protocol.api import SegmentRef
from copypool.protocol.errors import CatalogDown, Overloaded, Unavailable
from copypool_coordinator.batching import PASSES_MAX, Batcher
from copypool_coordinator.directory import FileKey
from copypool_coordinator.lookups import Lookups
from copypool_coordinator.rows import FORMAT, FileFlag, FileRow
from kit.eventually import eventually


class Calls:
    """Answers keys with their square, when it is let."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def run(self, keys: Sequence[int]) -> list[int]:
        self.seen.append(list(keys))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [key * key for key in keys]


def batcher(calls: Calls, **options: int) -> Batcher[int, int]:
    return Batcher("test", calls.run, **{"batch": 4, "flying": 1, "queue": 8, **options})  # type: ignore[arg-type]


async def test_calls_of_one_loop_pass_go_out_together_and_equal_keys_once() -> None:
    calls = Calls()
    joined = batcher(calls)
    assert await asyncio.gather(*(joined.submit(key) for key in (1, 2, 2, 3))) == [1, 4, 4, 9]
    assert calls.seen == [[1, 2, 3]]
    assert await joined.submit(2) == 4
    assert calls.seen == [[1, 2, 3], [2]]  # nothing is remembered


async def test_a_busy_batcher_collects_and_a_key_is_never_joined_to_a_call_that_was_sent() -> None:
    calls = Calls()
    calls.open.clear()
    joined = batcher(calls)
    first = joined.submit(1)
    await asyncio.sleep(0)
    again = [joined.submit(key) for key in (1, 2, 3, 4, 5)]
    await asyncio.sleep(0)
    assert calls.seen == [[1]]
    calls.open.set()
    assert await asyncio.gather(first, *again) == [1, 1, 4, 9, 16, 25]
    assert calls.seen == [[1], [1, 2, 3, 4], [5]]


async def test_a_patient_batcher_sends_a_second_call_once_it_is_as_large_as_the_first() -> None:
    calls = Calls()
    calls.open.clear()
    joined = batcher(calls, flying=2, patient=True)
    waiting = [joined.submit(1), joined.submit(2)]
    await eventually(lambda: calls.seen == [[1, 2]], "the first call is under way")
    waiting.append(joined.submit(3))
    for _ in range(2 * PASSES_MAX):
        await asyncio.sleep(0)
    assert calls.seen == [[1, 2]]
    waiting.append(joined.submit(4))
    await eventually(lambda: calls.seen == [[1, 2], [3, 4]], "the second call is under way")
    waiting.append(joined.submit(5))
    calls.open.set()
    assert await asyncio.gather(*waiting) == [1, 4, 9, 16, 25]
    assert calls.seen == [[1, 2], [3, 4], [5]]


async def test_a_patient_batcher_takes_in_what_the_answers_of_its_last_call_bring_about() -> None:
    """Clients that ask again as soon as they have their answer end up in one call, not in two that take turns."""
    calls = Calls()
    joined = batcher(calls, patient=True)

    async def client(number: int) -> None:
        for _ in range(3):
            await joined.submit(number)
            await asyncio.sleep(0)  # the answer goes out, and the next request comes in

    calls.open.clear()
    async with TaskGroup() as group:
        group.create_task(client(1))
        group.create_task(client(2))
        await eventually(lambda: calls.seen == [[1, 2]], "the first call is under way")
        group.create_task(client(3))
        await eventually(lambda: joined.waiting == 1, "the third client waits")
        calls.open.set()
    assert [sorted(keys) for keys in calls.seen] == [[1, 2], [1, 2, 3], [1, 2, 3], [3]]


async def test_a_patient_batcher_sends_half_a_call_at_once_and_less_after_so_many_passes() -> None:
    calls = Calls()
    joined = batcher(calls, patient=True, flying=2)
    waiting = [joined.submit(key) for key in (1, 2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert calls.seen == [[1, 2]]
    await asyncio.gather(*waiting)

    calls.seen.clear()
    joined = batcher(calls, patient=True, batch=100, queue=100)
    waiting = []
    for key in range(3 * PASSES_MAX):  # each pass brings one more
        waiting.append(joined.submit(key))
        await asyncio.sleep(0)
    assert len(calls.seen[0]) == PASSES_MAX
    await asyncio.gather(*waiting)


async def test_a_full_queue_refuses_and_takes_nothing_in() -> None:
    calls = Calls()
    joined = batcher(calls, queue=2)
    taken = [joined.submit(1), joined.submit(2)]
    with pytest.raises(Overloaded):
        joined.submit(3)
    assert joined.submit(2) is not None  # a key that waits already costs no place
    assert await asyncio.gather(*taken) == [1, 4]


async def test_a_failure_reaches_every_waiter_and_the_next_call_is_not_touched() -> None:
    calls = Calls()
    calls.error = Unavailable("gone")
    joined = batcher(calls)
    outcomes = await asyncio.gather(joined.submit(1), joined.submit(2), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
    calls.error = None
    assert await joined.submit(3) == 9


async def test_a_cancelled_waiter_leaves_the_others_alone() -> None:
    calls = Calls()
    calls.open.clear()
    joined = batcher(calls)
    one, other = joined.submit(1), joined.submit(1)
    await asyncio.sleep(0)
    one.cancel()
    calls.open.set()
    assert await other == 1


async def test_weight_bounds_a_call_but_one_heavy_key_still_goes() -> None:
    calls = Calls()
    joined: Batcher[int, int] = Batcher(
        "test", calls.run, batch=10, flying=1, queue=10, weigh=lambda key: key, weight=10
    )
    await asyncio.gather(*(joined.submit(key) for key in (6, 4, 5, 50, 1)))
    assert calls.seen == [[6, 4], [5], [50], [1]]


async def test_close_refuses_what_waits_and_ends_what_is_under_way() -> None:
    calls = Calls()
    calls.open.clear()
    joined = batcher(calls)
    flying = joined.submit(1)
    await asyncio.sleep(0)
    waiting = joined.submit(2)
    await joined.close()
    for future in (flying, waiting):
        with pytest.raises(Unavailable):
            await future
    with pytest.raises(Unavailable):
        joined.submit(3)


class Directory:
    """Rows by path; down on demand."""

    def __init__(self) -> None:
        self.down = False
        self.hang = False
        self.asked = 0

    async def lookup(self, keys: Sequence[FileKey]) -> list[FileRow | None]:
        self.asked += 1
        if self.hang:
            await asyncio.Event().wait()
        if self.down:
            raise CatalogDown("no etcd")
        return [row(int(key.path)) if key.path.isdigit() else None for key in keys]


def row(version: int, flags: int = 0) -> FileRow:
    return FileRow(FORMAT, flags, version, 1, bytes(32), bytes(8), SegmentRef(1, 4096, 1), 60)


def lookups(directory: Directory, timeout_s: float = 5.0) -> Lookups:
    return Lookups(directory.lookup, txns=2, queue=1000, timeout_s=timeout_s)


async def test_more_names_than_one_transaction_takes_are_split() -> None:
    directory = Directory()
    found = await asyncio.gather(*(lookups_.get(1, str(n)) for lookups_ in [lookups(directory)] for n in range(1, 301)))
    assert [each.version for each in found if each is not None] == list(range(1, 301))
    assert directory.asked == 3


async def test_a_tombstone_is_no_file() -> None:
    async def deleted(keys: Sequence[FileKey]) -> list[FileRow | None]:
        return [row(1, FileFlag.tombstone) for _ in keys]

    assert await Lookups(deleted, txns=1, queue=10, timeout_s=1.0).get(1, "a") is None


class Watch:
    """A clock turned by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def read(self) -> float:
        return self.now_s


async def test_while_etcd_is_down_one_lookup_asks_and_the_others_are_answered_at_once() -> None:
    directory, watch = Directory(), Watch()
    directory.down = True
    names = Lookups(directory.lookup, txns=2, queue=1000, timeout_s=300.0, monotonic=watch.read)
    with pytest.raises(CatalogDown):
        await names.get(1, "1")
    with pytest.raises(CatalogDown):
        await names.get(1, "1")
    assert directory.asked == 1  # a moment ago it was down
    watch.now_s += 0.6
    directory.hang = True
    probe = asyncio.ensure_future(names.get(1, "2"))
    await eventually(lambda: directory.asked == 2, "the probe is under way")
    watch.now_s += 60.0
    for _ in range(10):
        with pytest.raises(CatalogDown):
            await asyncio.wait_for(names.get(1, "3"), 30.0)
    assert directory.asked == 2
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    await names.close()


async def test_a_lookup_is_given_little_time_when_nothing_was_heard_from_etcd_for_long() -> None:
    directory, watch = Directory(), Watch()
    directory.hang = True
    names = Lookups(
        directory.lookup, txns=2, queue=1000, timeout_s=600.0, monotonic=watch.read, heard_s=lambda: watch.now_s - 4.0
    )
    with pytest.raises(CatalogDown):
        await asyncio.wait_for(names.get(1, "1"), 60.0)


async def test_lookups_go_on_as_soon_as_one_asked_with_success() -> None:
    directory, watch = Directory(), Watch()
    directory.down = True
    names = Lookups(directory.lookup, txns=2, queue=1000, timeout_s=5.0, monotonic=watch.read)
    with pytest.raises(CatalogDown):
        await names.get(1, "1")
    directory.down = False
    watch.now_s += 0.6
    for number in (7, 8):
        found = await names.get(1, str(number))
        assert found is not None
        assert found.version == number


async def test_a_lookup_that_gets_no_answer_is_catalog_down_in_time() -> None:
    directory = Directory()
    directory.hang = True
    with pytest.raises(CatalogDown):
        await lookups(directory, timeout_s=0.05).get(1, "1")
