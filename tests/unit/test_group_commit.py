"""The pure part of group commit: what shares a group, and what a commit's reply means for each record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypool.protocol.errors import BrokenInvariant, Overloaded
from copypool.protocol.internal import GROUP_OPS_MAX, CommitReply, EntryOutcome, EntryResult, RecordKind, Refusal
from copypool_node.group import (
    CALM_GROUPS,
    GROUP_BYTES_MAX,
    RETRIES_MAX,
    ExtentLog,
    Group,
    GroupQueue,
    Landed,
    PendingRecord,
)

MIB = 1024 * 1024


def record(
    path: str,
    *,
    size: int = 1,
    kind: RecordKind = "file",
    tries: int = 0,
    deadline_s: float = 1e9,
    namespace: int = 1,
    if_absent: bool = False,
) -> PendingRecord:
    return PendingRecord(
        kind=kind,
        namespace=namespace,
        path=path,
        payload=bytes(size),
        digest=b"d" * 32,
        write_id=b"w" * 8,
        first_sent_ms=0,
        capability="c",
        waiter=None,
        deadline_s=deadline_s,
        tries=tries,
        if_absent=if_absent,
        size=size,
    )


# -- the queue ------------------------------------------------------------------------------------
def test_a_path_is_taken_once_and_its_second_record_comes_next_in_order() -> None:
    queue = GroupQueue(100, 100 * MIB)
    records = [record("a"), record("b"), record("a"), record("c"), record("a")]
    for one in records:
        queue.offer(one)
    assert queue.take() == [records[0], records[1], records[3]]
    assert queue.take() == [records[2]]
    assert queue.take() == [records[4]]
    assert (len(queue), queue.queued_bytes) == (0, 0)


def test_a_full_queue_takes_nothing() -> None:
    queue = GroupQueue(2, 100)
    queue.offer(record("a", size=60))
    with pytest.raises(Overloaded):
        queue.offer(record("b", size=60))
    queue.offer(record("b", size=40))
    with pytest.raises(Overloaded):
        queue.offer(record("c", size=0))
    assert (len(queue), queue.queued_bytes) == (2, 100)


def test_a_record_that_lost_a_race_goes_alone() -> None:
    queue = GroupQueue(100, MIB)
    hot = record("hot", tries=1)
    for one in (record("a"), hot, record("b")):
        queue.offer(one)
    assert [one.path for one in queue.take()] == ["a", "b"]
    assert queue.take() == [hot]


def test_late_records_leave_the_queue_unwritten() -> None:
    queue = GroupQueue(100, MIB)
    late, early = record("late", deadline_s=5.0), record("early", deadline_s=10.0)
    queue.offer(early)
    queue.offer(late)
    assert queue.expire(4.9) == []
    assert queue.expire(5.0) == [late]
    assert queue.take() == [early]


CALM, REPLACED, UNTOLD = Landed([], [], 0), Landed([], [], 3), Landed([], [], -1)
CROWDED = Landed([], [record("left out")], 3, crowded=True)


def queue_after(*landed: Landed) -> GroupQueue:
    queue = GroupQueue(1000, 100 * MIB)
    for one in landed:
        queue.learn(one)
    return queue


@pytest.mark.parametrize(
    ("before", "replaces"),
    [
        ([], True),
        ([CALM] * (CALM_GROUPS - 1), True),
        ([CALM] * CALM_GROUPS, False),
        ([CALM] * (CALM_GROUPS - 1) + [REPLACED, CALM], True),
        ([CALM] * CALM_GROUPS + [REPLACED], False),  # a few find room
        ([CALM] * CALM_GROUPS + [CROWDED], True),
        ([CALM] * CALM_GROUPS + [CROWDED] + [CALM] * CALM_GROUPS, False),
        ([CALM] * CALM_GROUPS + [UNTOLD], True),
        ([UNTOLD] * 2 * CALM_GROUPS, True),
    ],
)
def test_puts_are_taken_to_create_files_once_groups_in_a_row_replaced_none(
    before: list[Landed], *, replaces: bool
) -> None:
    queue = queue_after(*before)
    assert queue.puts_replace == replaces
    for number in range(300):
        queue.offer(record(f"f{number}"))
    assert len(queue.take()) == ((GROUP_OPS_MAX - 1) // 2 if replaces else GROUP_OPS_MAX - 1)


def test_each_namespace_of_a_group_takes_its_room() -> None:
    queue = queue_after(*[CALM] * CALM_GROUPS)
    for number in range(300):
        queue.offer(record(f"f{number}", namespace=number))
    assert len(queue.take()) == GROUP_OPS_MAX // 2


def test_a_put_that_may_not_replace_takes_little_room_even_where_others_do() -> None:
    queue = queue_after()
    for number in range(300):
        queue.offer(record(f"f{number}", if_absent=True))
    assert len(queue.take()) == GROUP_OPS_MAX - 1


kinds = st.sampled_from(["file", "tombstone", "part", "manifest"])
offers = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3 * MIB), kinds, st.integers(0, 1)), max_size=200
)


@given(offers, st.booleans())
def test_groups_keep_every_bound_and_lose_nothing(asked: list[tuple[str, int, RecordKind, int]], calm: bool) -> None:
    queue = GroupQueue(1000, 1 << 40)
    for _ in range(CALM_GROUPS if calm else 0):
        queue.learn(CALM)
    blob = memoryview(bytes(3 * MIB))
    given_in = []
    for path, size, kind, tries in asked:
        one = record(path, size=0, kind=kind, tries=tries)
        one.payload = blob[:size]
        given_in.append(one)
        queue.offer(one)
    taken: list[PendingRecord] = []
    while len(queue):
        group = queue.take()
        assert group, "a queue that is not empty gives a group"
        assert len({one.path for one in group}) == len(group)
        operations = sum(one.cost(replaces=not calm) for one in group)
        assert len(group) == 1 or operations + len({one.namespace for one in group}) <= GROUP_OPS_MAX
        assert len(group) == 1 or sum(len(one.payload) for one in group) <= GROUP_BYTES_MAX
        assert len(group) == 1 or not any(one.tries for one in group)
        taken += group
    assert queue.queued_bytes == 0
    for path in "abcdefgh":
        assert [one for one in taken if one.path == path] == [one for one in given_in if one.path == path]


# -- the log --------------------------------------------------------------------------------------
def write(log: ExtentLog, *paths: str) -> Group:
    group = log.begin([record(path) for path in paths])
    log.wrote(group, group.offset + 100)
    return group


def reply(log: ExtentLog, group: Group, *outcomes: EntryOutcome, revision: int = 0) -> CommitReply:
    return CommitReply(revision or log.revision + 1, group.new_length, [EntryResult(one) for one in outcomes])


def test_groups_follow_each_other_without_a_gap() -> None:
    log = ExtentLog(7, 1, 50, 4096)
    first = write(log, "a")
    second = write(log, "b")
    assert (first.offset, second.offset, first.number, second.number) == (4096, 4196, 0, 1)
    request = log.request(first, 3, 9, seal=False)
    assert (request.revision, request.old_length, request.new_length) == (50, 4096, 4196)
    with pytest.raises(BrokenInvariant):
        log.request(second, 3, 9, seal=False)
    log.landed(first, reply(log, first, "committed", revision=60), seal=False)
    assert log.request(second, 3, 9, seal=False).revision == 60


def test_a_refusal_is_answered_when_the_group_that_notes_it_has_landed() -> None:
    log = ExtentLog(7, 1, 50, 4096)
    first = write(log, "a", "b")
    meanwhile = write(log, "c")  # on the disk before the first group's outcome is known: it cannot note it
    landed = log.landed(first, reply(log, first, "committed", "conflict"), seal=False)
    assert [(one.record.path, one.result.outcome) for one in landed.verdicts] == [("a", "committed")]
    assert log.note_wanted
    landed = log.landed(meanwhile, reply(log, meanwhile, "committed"), seal=False)
    assert [one.record.path for one in landed.verdicts] == ["c"]
    note = write(log)
    assert note.noted == [Refusal(0, 1)]
    landed = log.landed(note, reply(log, note), seal=False)
    assert [(one.record.path, one.result.outcome) for one in landed.verdicts] == [("b", "conflict")]
    assert log.unnoted() == []
    assert log.idle


def test_a_replay_is_answered_after_its_note_as_well() -> None:
    log = ExtentLog(7, 1, 50, 4096)
    first = write(log, "a")
    assert log.landed(first, reply(log, first, "replayed"), seal=False).verdicts == []
    note = write(log)
    assert [one.result.outcome for one in log.landed(note, reply(log, note), seal=False).verdicts] == ["replayed"]


def test_a_seal_answers_all_refusals_and_names_those_for_the_footer() -> None:
    log = ExtentLog(7, 1, 50, 4096)
    first, last = write(log, "a"), write(log, "b")
    log.landed(first, reply(log, first, "conflict"), seal=False)
    landed = log.landed(last, reply(log, last, "not_found"), seal=True)
    assert sorted(one.record.path for one in landed.verdicts) == ["a", "b"]
    assert log.unnoted() == [Refusal(0, 0), Refusal(1, 0)]
    assert log.ended()
    with pytest.raises(BrokenInvariant):
        log.begin([record("c")])


@pytest.mark.parametrize("outcome", ["stale", "contended"])
def test_a_lost_race_is_tried_again_a_bounded_number_of_times(outcome: EntryOutcome) -> None:
    log = ExtentLog(7, 1, 50, 4096)
    one = record("hot")
    for attempt in range(RETRIES_MAX):
        group = log.begin([one])
        log.wrote(group, group.offset + 100)
        landed = log.landed(group, reply(log, group, outcome), seal=False)
        assert (landed.again, one.tries) == ([one], attempt + 1)
        assert not log.note_wanted, "nobody waits for this refusal: the record itself notes it"
    group = log.begin([one])
    log.wrote(group, group.offset + 100)
    assert log.landed(group, reply(log, group, outcome), seal=False).again == []
    assert log.note_wanted


def test_a_record_that_found_no_room_goes_with_others_again_and_asks_for_more() -> None:
    log = ExtentLog(7, 1, 50, 4096)
    group = write(log, "a", "b")
    crowded = EntryResult("contended", crowded=True)
    landed = log.landed(
        group, CommitReply(60, group.new_length, [EntryResult("committed"), crowded], replaced=1), seal=False
    )
    (left_out,) = landed.again
    assert (left_out.path, left_out.tries, left_out.cost(replaces=False)) == ("b", 0, 2)
    assert (landed.crowded, landed.replaced) == (True, 1)
    group = log.begin([left_out])
    assert group.noted == [Refusal(0, 1)]
    log.wrote(group, group.offset + 100)
    landed = log.landed(group, CommitReply(61, group.new_length, [crowded]), seal=False)
    assert (landed.again, left_out.tries, landed.crowded) == ([left_out], 1, False), "alone now, and not for ever"


def test_a_reply_for_another_group_is_never_taken() -> None:
    log = ExtentLog(7, 1, 50, 4096)
    group = write(log, "a")
    with pytest.raises(BrokenInvariant, match="extent 7"):
        log.landed(group, CommitReply(51, group.new_length + 1, [EntryResult("committed")]), seal=False)
    with pytest.raises(BrokenInvariant):
        log.landed(group, CommitReply(51, group.new_length, []), seal=False)


def test_a_dead_extent_takes_nothing_and_hands_out_who_waits() -> None:
    log = ExtentLog(7, 1, 50, 4096)
    first = write(log, "a")
    log.landed(first, reply(log, first, "conflict"), seal=False)
    write(log, "b")
    assert sorted(one.path for one in log.waiters()) == ["a", "b"]
    assert [one.record.path for one in log.kill("fenced")] == ["a"]
    assert log.kill("again") == []
    assert log.dead == "fenced"
    with pytest.raises(BrokenInvariant):
        log.begin([])


outcomes = st.sampled_from(["committed", "conflict", "replayed", "not_found", "stale", "contended"])


@given(st.lists(st.lists(outcomes, min_size=0, max_size=4), max_size=12), st.data())
def test_every_client_is_answered_exactly_once_and_never_before_its_note(
    groups: list[list[EntryOutcome]], data: st.DataObject
) -> None:
    """Writes and commits interleave at random; a refused record's answer comes with a landed group that notes it."""
    log = ExtentLog(7, 1, 50, 4096)
    answered: list[str] = []
    refused: dict[str, Refusal] = {}
    noted: set[tuple[int, int]] = set()
    written: list[tuple[Group, list[EntryOutcome]]] = []
    expected: list[str] = []

    def land() -> None:
        group, results = written.pop(0)
        landed = log.landed(group, reply(log, group, *results), seal=False)
        noted.update((one.group, one.index) for one in group.noted)
        for index, outcome in enumerate(results):
            if outcome != "committed":
                refused[group.records[index].path] = Refusal(group.number, index)
        for verdict in landed.verdicts:
            answered.append(verdict.record.path)
            if verdict.result.outcome != "committed":
                refusal = refused[verdict.record.path]
                assert (refusal.group, refusal.index) in noted

    for number, results in enumerate(groups):
        one = log.begin([record(f"{number}-{index}", tries=RETRIES_MAX) for index in range(len(results))])
        log.wrote(one, one.offset + 100)
        written.append((one, results))
        expected += [pending.path for pending in one.records]
        while len(written) > 1 or (written and data.draw(st.booleans())):
            land()
    while written:
        land()
    while log.note_wanted:
        note = write(log)
        written.append((note, []))
        land()
    assert sorted(answered) == sorted(expected)
    assert log.unnoted() == []
