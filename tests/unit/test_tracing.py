"""Trace context: what is taken over from a caller and what is not, and that one id goes through nested work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from copypool.protocol.errors import NotFound
from copypool.telemetry import tracing
from copypool.telemetry.tracing import Span, Trace

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.fixture
def spans() -> Iterator[list[Span]]:
    found: list[Span] = []
    tracing.set_sink(found.append)
    yield found
    tracing.set_sink(None)


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    tracing.adopt(None)
    yield
    tracing.adopt(None)


def test_a_given_trace_goes_on_under_a_span_of_its_own() -> None:
    trace = tracing.accept(GIVEN)
    version, trace_id, span_id, flags = tracing.outgoing().split("-")
    assert (version, trace_id, flags) == ("00", TRACE_ID, "01")
    assert span_id == trace.span_id != SPAN_ID
    assert trace.parent_id == SPAN_ID
    assert trace.sampled


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        GIVEN.upper(),
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"{GIVEN}-more",
        f"{GIVEN}\n",
        f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
        "00-" + "a" * 100_000,
    ],
)
def test_what_is_no_valid_header_begins_a_new_trace(given: str) -> None:
    trace = Trace(given)
    assert trace.trace_id != TRACE_ID
    assert len(trace.trace_id) == 32
    assert (trace.parent_id, trace.sampled) == ("", False)


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert Trace(f"cc-{TRACE_ID}-{SPAN_ID}-01-what-comes-then").trace_id == TRACE_ID


def test_ids_are_never_zero_and_differ() -> None:
    ids = {Trace().trace_id for _ in range(1000)} | {Trace().span_id for _ in range(1000)}
    assert len(ids) == 2000
    assert not any(set(each) == {"0"} for each in ids)


def test_an_operation_is_part_of_what_runs_and_ends_with_it(spans: list[Span]) -> None:
    with tracing.operation("outer") as outer, tracing.operation("inner", extent=7) as inner:
        assert inner.trace_id == outer.trace_id
        assert inner.parent_id == outer.span_id
        assert tracing.current() is inner
    assert tracing.current() is None
    assert [(span.name, span.code, span.attributes) for span in spans] == [
        ("inner", "ok", {"extent": 7}),
        ("outer", "ok", {}),
    ]


def test_an_operation_takes_over_a_header_in_place_of_what_runs() -> None:
    with tracing.operation("step"), tracing.operation("copy", GIVEN) as copy:
        assert (copy.trace_id, copy.parent_id) == (TRACE_ID, SPAN_ID)


def test_a_failed_operation_tells_the_code(spans: list[Span]) -> None:
    with pytest.raises(NotFound), tracing.operation("get"):
        raise NotFound("no")
    with pytest.raises(ZeroDivisionError), tracing.operation("get"):
        _ = 1 / 0
    assert [span.code for span in spans] == ["not_found", "ZeroDivisionError"]


def test_without_a_trace_the_callers_own_library_is_asked() -> None:
    tracing.set_sink(None, lambda: GIVEN)
    try:
        with tracing.operation("put") as trace:
            assert trace.trace_id == TRACE_ID
    finally:
        tracing.set_sink(None)


async def test_concurrent_operations_do_not_mix() -> None:
    @tracing.traced("work")
    async def work() -> tuple[str, str]:
        before = tracing.outgoing().split("-")[1]
        await asyncio.sleep(0)
        return before, tracing.outgoing().split("-")[1]

    found = await asyncio.gather(*(work() for _ in range(10)))
    assert all(before == after for before, after in found)
    assert len({before for before, _ in found}) == 10


def test_within_nothing_changes_nothing() -> None:
    with tracing.continuing(GIVEN) as trace:
        with tracing.within(None):
            assert tracing.current() is trace
        with tracing.within(Trace()):
            assert tracing.current() is not trace
        assert tracing.current() is trace
