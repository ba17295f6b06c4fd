"""The client's pure parts: retry, hedging, failover, checking, ranges, tree plans."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copypool.checking import StripeChecker
from copypool.failover import AWAY_S, AwayNodes, Reason, SegmentSources
from copypool.hedging import BURST_MAX, DELAY_MIN_S, DELAY_UNKNOWN_S, EXTRA_PART, HedgeBudget, LatencyWindow
from copypool.leases import prefixes_of, prefixes_of_all
from copypool.protocol.api import LocationState, Source
from copypool.protocol.errors import (
    CatalogDown,
    Conflict,
    CopypoolError,
    DigestRefused,
    Fenced,
    Forbidden,
    Invalid,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    RangeNotSatisfiable,
    Unavailable,
)
from copypool.protocol.names import in_scope
from copypool.protocol.stripes import BLOCK_BYTES, STRIPE_BYTES, encode_prelude, split_range
from copypool.reading import clip_range, spans_of
from copypool.retry import AVOID_NODE_S, Backoff, WriteRetry
from copypool.trees import plan_targets


# -- retry ----------------------------------------------------------------------------------------
@given(attempt=st.integers(0, 1000), random01=st.floats(0, 1, exclude_max=True))
def test_backoff_is_positive_and_bounded(attempt: int, random01: float) -> None:
    assert 0 < Backoff().delay_s(attempt, random01) <= Backoff().limit_s


def test_a_node_that_failed_is_avoided_for_a_while() -> None:
    story = WriteRetry(deadline_s=100.0)
    story.failed(NoSpace("full"), 3, 0.0, 0.5)
    assert story.avoid_nodes(0.1) == [3]
    assert story.avoid_nodes(AVOID_NODE_S + 0.1) == []


@pytest.mark.parametrize("error", [Fenced("x"), Unavailable("x"), CatalogDown("x"), NoSpace("x"), OutcomeUnknown("x")])
def test_what_may_pass_is_repeated_until_the_deadline(error: CopypoolError) -> None:
    story = WriteRetry(deadline_s=10.0)
    for now_s in (0.0, 1.0, 2.0, 5.0):
        assert story.failed(error, 1, now_s, 0.0) > 0
    with pytest.raises(type(error)):
        story.failed(error, 1, 10.0, 0.0)


def test_no_room_anywhere_ends_it_at_once() -> None:
    with pytest.raises(NoSpace):
        WriteRetry(deadline_s=10.0).failed(NoSpace("no volume"), None, 0.0, 0.0)


def test_an_unknown_outcome_is_never_covered_by_a_later_harmless_error() -> None:
    story = WriteRetry(deadline_s=10.0)
    story.failed(OutcomeUnknown("lost"), 1, 0.0, 0.0)
    with pytest.raises(OutcomeUnknown):
        story.failed(Unavailable("nobody"), None, 10.0, 0.0)
    story = WriteRetry(deadline_s=10.0)
    story.failed(OutcomeUnknown("lost"), 1, 0.0, 0.0)
    with pytest.raises(OutcomeUnknown):
        story.failed(NoSpace("no volume"), None, 1.0, 0.0)


@pytest.mark.parametrize("error", [Conflict("exists"), NotFound("no file"), DigestRefused("flipped")])
def test_an_answer_to_a_repeat_does_not_settle_an_earlier_attempt(error: CopypoolError) -> None:
    """A delete that waits in a node's queue can still be applied after its repeat found no file."""
    story = WriteRetry(deadline_s=10.0, _refused=2)
    story.failed(OutcomeUnknown("lost"), 1, 0.0, 0.0)
    with pytest.raises(OutcomeUnknown):
        story.failed(error, 1, 1.0, 0.0)


def test_what_is_malformed_is_so_in_every_attempt() -> None:
    story = WriteRetry(deadline_s=10.0)
    story.failed(OutcomeUnknown("lost"), 1, 0.0, 0.0)
    with pytest.raises(Invalid):
        story.failed(Invalid("empty path"), 1, 1.0, 0.0)


@pytest.mark.parametrize("error", [Forbidden("expired"), DigestRefused("a flip on the way")])
def test_a_refused_capability_or_flipped_body_is_tried_again_a_few_times(error: CopypoolError) -> None:
    story = WriteRetry(deadline_s=100.0)
    story.failed(error, 1, 0.0, 0.0)
    story.failed(error, 1, 0.0, 0.0)
    with pytest.raises(type(error)):
        story.failed(error, 1, 0.0, 0.0)


# -- hedging --------------------------------------------------------------------------------------
@given(st.lists(st.booleans(), max_size=2000))
def test_hedges_never_exceed_their_part_of_the_requests(slow: list[bool]) -> None:
    budget = HedgeBudget()
    hedged = 0
    for sent, wants_hedge in enumerate(slow, start=1):
        budget.request_sent()
        if wants_hedge and budget.take():
            hedged += 1
        assert hedged <= EXTRA_PART * sent + 1e-6


def test_unused_budget_is_kept_only_up_to_a_burst() -> None:
    budget = HedgeBudget()
    for _ in range(100_000):
        budget.request_sent()
    taken = 0
    while budget.take():
        taken += 1
    assert taken == int(BURST_MAX)


def test_the_delay_is_the_95th_percentile_of_the_last_latencies() -> None:
    window = LatencyWindow()
    assert window.hedge_delay_s() == DELAY_UNKNOWN_S
    for _ in range(1000):
        window.add(0.5)
    for latency_ms in range(1, 129):
        window.add(latency_ms / 1000)
    assert 0.115 <= window.hedge_delay_s() <= 0.128
    for _ in range(128):
        window.add(0.001)
    assert window.hedge_delay_s() == DELAY_MIN_S


# -- failover -------------------------------------------------------------------------------------
def source(number: int) -> Source:
    return Source(number, f"n{number}", "http://x", f"v{number}", "primary", "good", True, "cap")


def test_a_failed_source_is_asked_again_only_past_its_byte() -> None:
    sources = SegmentSources([source(1), source(2)])
    assert [found.node_id for found in sources.candidates(0)] == [1, 2]
    sources.failed(source(1), 0, "checksum")
    assert [found.node_id for found in sources.candidates(0)] == [2]
    assert [found.node_id for found in sources.candidates(1)] == [2, 1]
    sources.failed(source(2), 1, "timeout")
    assert [found.node_id for found in sources.candidates(1)] == [1]
    assert [found.node_id for found in sources.candidates(2)] == [1, 2]


def test_a_new_lookup_needs_progress_since_the_last_one() -> None:
    sources = SegmentSources([source(1)])
    sources.failed(source(1), 5, "refused")
    assert not sources.candidates(5)
    assert sources.may_refresh(5)
    sources.refreshed([source(1)], 5)
    assert sources.candidates(5)
    sources.failed(source(1), 5, "refused")
    assert not sources.may_refresh(5)
    assert sources.may_refresh(6)


def test_a_node_that_did_not_answer_is_asked_last_for_a_while() -> None:
    away = AwayNodes()
    away.noted(1, "checksum", 0.0)
    assert away.ids(0.0) == []
    away.noted(1, "timeout", 0.0)
    assert away.ids(AWAY_S / 2) == [1]
    sources = SegmentSources([source(1), source(2)], away.ids(AWAY_S / 2))
    assert [found.node_id for found in sources.candidates(0)] == [2, 1], "last, but never left out"
    assert away.ids(AWAY_S) == []
    away.noted(1, "refused", 0.0)
    away.answered(1)
    assert away.ids(0.0) == []


def located(number: int, state: LocationState, *, given_up: bool = False) -> Source:
    return Source(number, f"n{number}", "http://x", f"v{number}", "copy", state, True, "cap", given_up)


def exhausted(*failures: tuple[Source, Reason, bool]) -> SegmentSources:
    sources = SegmentSources([each for each, _, _ in failures])
    for each, reason, absent in failures:
        sources.failed(each, 0, reason, absent=absent)
    return sources


def test_bytes_are_lost_when_every_location_is_known_to_have_none_of_them() -> None:
    bad, gone, short = located(1, "damaged"), located(2, "missing"), located(3, "copying")
    given_up = located(4, "good", given_up=True)
    every: list[tuple[Source, Reason, bool]] = [
        (bad, "checksum", False),
        (gone, "refused", True),
        (short, "refused", True),
        (given_up, "timeout", False),
    ]
    assert exhausted(*every).nothing_to_come
    assert SegmentSources([]).nothing_to_come, "no location at all"


@pytest.mark.parametrize(
    ("hope", "reason", "absent"),
    [
        (located(2, "good"), "timeout", False),  # away
        (located(2, "good"), "checksum", False),  # bad on its way, perhaps: its node has not looked yet
        (located(2, "good"), "refused", True),  # its volume is not mounted yet
        (located(2, "damaged"), "refused", False),  # away, and has other good blocks
        (located(2, "damaged"), "refused", True),  # its volume is not mounted yet
    ],
)
def test_bytes_are_not_lost_while_a_location_may_have_them(hope: Source, reason: Reason, absent: bool) -> None:
    assert not exhausted((located(1, "damaged"), "checksum", False), (hope, reason, absent)).nothing_to_come


@given(
    bad=st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=4),
    blocks=st.integers(1, 30),
)
def test_every_block_that_one_source_has_is_read(bad: list[set[int]], blocks: int) -> None:
    """A model of the reader: each source delivers up to its next bad block. Ends, and gives what can be given."""
    sources = SegmentSources([source(number) for number in range(len(bad))])
    position = attempts = 0
    while position < blocks:
        attempts += 1
        assert attempts <= (blocks + 1) * (len(bad) + 1), "bounded"
        candidates = sources.candidates(position)
        if not candidates:
            break
        chosen = candidates[0]
        stop = min([block for block in bad[chosen.node_id] if block >= position] + [blocks])
        position = stop
        if stop < blocks:
            sources.failed(chosen, position, "checksum")
    bad_everywhere = set.intersection(*bad)
    assert position == min([block for block in bad_everywhere if block < blocks] + [blocks])


# -- checking -------------------------------------------------------------------------------------
EXTENT, OFFSET = 9, 4096


def stored(payload: bytes) -> bytes:
    content = bytearray()
    for at in range(0, len(payload), STRIPE_BYTES):
        stripe = payload[at : at + STRIPE_BYTES]
        last = at + len(stripe) == len(payload)
        content += encode_prelude(stripe, EXTENT, OFFSET + len(content), last=last) + stripe
    return bytes(content)


def raw(content: bytes, length: int, start: int, stop: int) -> bytes:
    return b"".join(
        content[part.prelude_offset - OFFSET :][: part.prelude_bytes]
        + content[part.data_offset - OFFSET :][: part.data_bytes]
        for part in split_range(OFFSET, length, start, stop)
    )


PAYLOAD = random.Random(7).randbytes(STRIPE_BYTES + 3 * BLOCK_BYTES + 11)
STORED = stored(PAYLOAD)
positions = st.one_of(
    st.integers(0, len(PAYLOAD)),
    st.sampled_from([0, BLOCK_BYTES, STRIPE_BYTES - 1, STRIPE_BYTES, STRIPE_BYTES + 1, len(PAYLOAD)]),
)


@settings(deadline=None, max_examples=40)
@given(positions, positions, st.integers(997, 300_000))
def test_any_range_in_any_pieces_comes_out(one: int, other: int, piece_bytes: int) -> None:
    start, stop = sorted((one, other))
    body = raw(STORED, len(PAYLOAD), start, stop)
    checker = StripeChecker(EXTENT, OFFSET, len(PAYLOAD), start, stop)
    out = b"".join(
        piece for at in range(0, len(body), piece_bytes) for piece in checker.feed(body[at : at + piece_bytes])
    )
    assert out == PAYLOAD[start:stop]
    assert checker.finished
    assert not checker.broken
    assert checker.position == stop


@settings(deadline=None, max_examples=40)
@given(positions, positions, st.data())
def test_a_flipped_bit_anywhere_never_gets_through(one: int, other: int, data: st.DataObject) -> None:
    start, stop = sorted((one, other))
    body = bytearray(raw(STORED, len(PAYLOAD), start, stop))
    if not body:
        return
    body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    checker = StripeChecker(EXTENT, OFFSET, len(PAYLOAD), start, stop)
    out = b"".join(checker.feed(bytes(body)))
    assert checker.broken
    assert out == PAYLOAD[start : checker.position], "what came out is good, and ends where the reader goes on"


def test_bytes_from_another_place_are_refused() -> None:
    for extent, offset in ((EXTENT + 1, OFFSET), (EXTENT, OFFSET + 4096)):
        checker = StripeChecker(extent, offset, len(PAYLOAD), 0, len(PAYLOAD))
        assert not checker.feed(STORED)
        assert checker.broken


def test_more_bytes_than_asked_for_are_refused() -> None:
    checker = StripeChecker(EXTENT, OFFSET, len(PAYLOAD), 0, len(PAYLOAD))
    checker.feed(STORED + b"x")
    assert checker.broken


# -- ranges and trees -----------------------------------------------------------------------------
@given(st.lists(st.integers(0, 50), max_size=12), st.integers(0, 600), st.integers(0, 600))
def test_spans_cover_the_range_exactly(lengths: list[int], one: int, other: int) -> None:
    total = sum(lengths)
    start, stop = sorted((min(one, total), min(other, total)))
    content = [bytes([number]) * length for number, length in enumerate(lengths)]
    got = b"".join(content[span.segment][span.start : span.stop] for span in spans_of(lengths, start, stop))
    assert got == b"".join(content)[start:stop]


@given(st.integers(0, 100), st.integers(-150, 150), st.one_of(st.none(), st.integers(-150, 150)))
def test_a_clipped_range_is_the_slice(size: int, start: int, stop: int | None) -> None:
    data = bytes(range(size))
    if start > size:
        with pytest.raises(RangeNotSatisfiable):
            clip_range(size, start, stop)
        return
    low, high = clip_range(size, start, stop)
    assert 0 <= low <= high <= size
    assert data[low:high] == data[start:stop]


@pytest.mark.parametrize("names", [["a", "a/b"], ["x/a/b/c", "x/a"], ["a/b", "a", "c"]])
def test_file_and_folder_of_one_name_clash(names: list[str]) -> None:
    with pytest.raises(Conflict):
        plan_targets(names, "")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/.", "nul\0", "x" * 256, "é" * 128])
def test_names_that_cannot_be_local_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        plan_targets(["good", name], "")


def test_lookalike_siblings_are_no_clash() -> None:
    targets = plan_targets(["t/a", "t/ab/c", "t/a.b"], "t/")
    assert [target.relative for target in targets] == ["a", "ab/c", "a.b"]


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ab", "é"]), min_size=1, max_size=4), min_size=1, max_size=6))
def test_lease_prefixes_cover_their_paths(parts: list[list[str]]) -> None:
    paths = ["/".join(part) for part in parts]
    assert all(in_scope(paths[0], prefix) for prefix in prefixes_of(paths[0]))
    assert all(in_scope(path, prefix) for path in paths for prefix in prefixes_of_all(paths))
