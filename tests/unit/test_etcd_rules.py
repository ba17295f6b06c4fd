"""The pure rules of the etcd door: versions, proofs, paging, the position in a watch."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copypool_coordinator.etcd import KeyValue, check_version
from copypool_coordinator.etcd.listing import Pager
from copypool_coordinator.etcd.mirror import Position
from copypool_coordinator.etcd.verdicts import Failure, judge
from copypool_coordinator.etcd.versions import Verdict


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        *((version, Verdict.REFUSE) for version in ("3.3.27", "3.4.0", "3.4.20", "3.5.0", "3.5.2", "", "latest")),
        *((version, Verdict.WARN) for version in ("3.4.21", "3.4.23", "3.4.31", "3.5.3", "3.5.13", "v3.4.23+git")),
        *((version, Verdict.OK) for version in ("3.4.32", "3.4.40", "3.5.14", "3.6.0", "4.0.0")),
    ],
)
def test_versions_that_lose_data_are_refused_and_risky_ones_warn(version: str, verdict: Verdict) -> None:
    judged = check_version(version)
    assert judged.verdict is verdict
    assert judged.refused == (verdict is Verdict.REFUSE)
    assert bool(judged.message) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("UNAVAILABLE", "etcdserver: request timed out"),
        ("UNAVAILABLE", "etcdserver: request timed out, possibly due to previous leader failure"),
        ("UNAVAILABLE", "etcdserver: request timed out, possibly due to connection lost"),
        ("UNAVAILABLE", "etcdserver: leader changed"),
        ("UNAVAILABLE", "etcdserver: server stopped"),
        ("UNAVAILABLE", "Socket closed"),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer"),
        ("UNAVAILABLE", "GOAWAY received"),
        ("UNAVAILABLE", "keepalive watchdog timeout"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded"),
        ("CANCELLED", "the channel is closed"),
        ("INTERNAL", "RST_STREAM"),
        ("RESOURCE_EXHAUSTED", "Received message larger than max"),
        ("UNKNOWN", "something new"),
        ("UNKNOWN", "it failed to connect to all addresses"),
        ("INTERNAL", "failed to connect to all addresses"),
    ],
)
def test_what_may_have_been_applied_is_unknown(code: str, details: str) -> None:
    assert judge(code, details) is Failure.UNKNOWN


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("UNAVAILABLE", "etcdserver: no leader"),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests"),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: Connection refused"),
    ],
)
def test_what_was_refused_before_it_was_proposed_may_be_tried_elsewhere(code: str, details: str) -> None:
    assert judge(code, details) is Failure.NOT_APPLIED


def test_no_space_is_its_own_verdict_since_the_member_may_have_applied_it() -> None:
    assert judge("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded") is Failure.NO_SPACE


def _read_all(keys: list[bytes], begin: bytes, end: bytes, limit: int) -> tuple[list[bytes], list[int]]:
    """What a pager reads from a store of `keys`, and how many keys each page made etcd walk."""
    pager = Pager(begin, end, limit)
    read: list[bytes] = []
    walked: list[int] = []
    while not pager.done:
        page_end = pager.page_end
        assert pager.cursor < page_end <= end
        inside = [key for key in keys if pager.cursor <= key < page_end]
        page = inside[:limit]
        read += page
        walked.append(len(inside))
        pager.advance(page_end, page[-1] if page else None, len(inside), more=len(inside) > limit)
        assert len(walked) < 10_000, "the pager does not advance"
    return read, walked


@given(
    st.lists(st.binary(min_size=1, max_size=6), unique=True, max_size=120),
    st.tuples(st.binary(max_size=3), st.binary(min_size=1, max_size=3)).filter(lambda pair: pair[0] < pair[1]),
    st.integers(1, 20),
)
@settings(max_examples=150, deadline=None)
def test_paging_reads_every_key_of_the_range_once_and_in_order(
    names: list[bytes], bounds: tuple[bytes, bytes], limit: int
) -> None:
    keys = sorted(names)
    read, _ = _read_all(keys, *bounds, limit)
    assert read == [key for key in keys if bounds[0] <= key < bounds[1]]


def test_paging_does_not_make_etcd_walk_the_range_over_and_over() -> None:
    """Three crowds of ids far apart, as extents, volumes and sessions are."""
    keys = sorted(
        b"/cp/c/%c/%s" % (kind, number.to_bytes(8, "big"))
        for kind, count in ((b"e", 20_000), (b"n", 30), (b"v", 3_000))
        for number in range(count)
    )
    read, walked = _read_all(keys, b"/cp/c/", b"/cp/c0", 500)
    assert read == keys
    naive = sum(range(len(keys), 0, -500))
    assert sum(walked) < 10 * len(keys) < naive
    assert len(walked) < 4 * len(keys) / 500


def _row(key: bytes, revision: int) -> KeyValue:
    return KeyValue(key, b"%d" % revision, revision, revision, 1, 0)


#: A history: (key, is it a delete) per revision, from revision 1 on.
HISTORY = st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.booleans()), min_size=1, max_size=30)


@given(HISTORY, st.data())
def test_a_position_survives_any_cuts_fragments_and_repeats(
    history: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    """The stream is cut anywhere, also inside a reply; a new one begins after the position, or earlier."""
    events = [(is_delete, _row(key, revision)) for revision, (key, is_delete) in enumerate(history, 1)]
    position = Position(0)
    state: dict[bytes, int] = {}
    seen = 0
    while position.revision < len(history):
        position.forget_fragments()
        start = data.draw(st.integers(max(0, position.revision - 2), position.revision), label="resumes after")
        rest = events[start:]
        while rest:
            size = data.draw(st.integers(1, len(rest)), label="events in the reply")
            unfinished = data.draw(st.booleans(), label="unfinished") and size < len(rest)
            change = position.take(rest[:size], unfinished=unfinished)
            rest = rest[size:]
            if change is not None:
                assert seen < change.revision == position.revision
                seen = change.revision
                state.update({row.key: row.mod_revision for row in change.puts})
                for key in change.deletes:
                    state.pop(key, None)
            if data.draw(st.integers(0, 3), label="cut at 0") == 0:
                break
    truth: dict[bytes, int] = {}
    for is_delete, row in events:
        truth.pop(row.key, None) if is_delete else truth.update({row.key: row.mod_revision})
    assert state == truth


def test_pages_cross_a_gap_quickly() -> None:
    keys = [b"/a/" + b"\0" * 8, *(b"/z/" + number.to_bytes(8, "big") for number in range(50))]
    read, walked = _read_all(keys, b"/", b"0", 10)
    assert read == keys
    assert len(walked) < 60
    assert all(later <= 51 for _, later in pairwise(walked))
