"""ProcessController: how far every running process is, and when it has ended.

It does none of the work. It reads off the rows what is left, writes that down now and then (B5: watched rows change
seldom), and ends a process: `done` when nothing is left, `incomplete` with the list when what is left cannot go on,
`cancelled` on an operator's word. Whoever leads goes on where the last leader was, since the row holds all there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from copypool.protocol.processes import PROCESSES_MAX, SKIPPED_MAX
from copypool_coordinator import reclassing
from copypool_coordinator.controllers.actions import Action, SealExtent, TrimProcesses, WriteProcess
from copypool_coordinator.departing import after_cancelling
from copypool_coordinator.obstacles import Obstacle, Obstacles
from copypool_coordinator.offpolicy import Mark
from copypool_coordinator.policy import Facts
from copypool_coordinator.remaining import Left, bad_on, left
from copypool_coordinator.rows import ProcessRow, Skipped

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView

#: Between two writes of a row whose process goes on; what is shown is counted when somebody asks.
WRITE_MS = 10_000
FOUND_MAX = 10_000
#: Extents that a rebalance moves at a time.
MOVES_MAX = 32
_TRIM_MAX = 100


def plan(view: ClusterView, facts: Facts, marks: Mapping[int, Mark], now_ms: int) -> list[Action]:
    """Rows to write, extents that an audit waits to be sealed, ended processes beyond those that are kept."""
    actions: list[Action] = []
    ended: list[str] = []
    for name, entry in view.processes.items():
        row = entry.row
        if row.state != "running":
            ended.append(name)
            continue
        if row.verb != "rebalance":
            actions += _seal(view, row)
        after = look(view, facts, marks, row, now_ms)
        if after == row:
            continue
        over = after.state != "running"
        news = over or after.stuck_since_ms != row.stuck_since_ms or after.moves != row.moves
        if news or after.found != row.found or now_ms - row.updated_ms >= WRITE_MS:
            after.updated_ms = now_ms
            gone = row.volumes[0] if over and row.verb == "delete" and after.state == "done" else 0
            give_back = _given_back(after) if over else ()
            actions.append(WriteProcess(name, entry.mod_revision, after, give_back, gone))
    if len(ended) > PROCESSES_MAX:
        actions.append(TrimProcesses(tuple(sorted(ended)[: len(ended) - PROCESSES_MAX][:_TRIM_MAX])))
    return actions


def look(
    view: ClusterView,
    facts: Facts,
    marks: Mapping[int, Mark],
    row: ProcessRow,
    now_ms: int,
    *,
    explain: bool = False,
) -> ProcessRow:
    """The row as it should be now: counted anew, and ended if it is time.

    With `explain` what cannot go on now is in it (`skipped`), also while it runs: for who asks, not to be written.
    """
    items = left(view, facts, marks, row)
    after = replace(row)
    if row.verb == "audit":
        _note_found(view, after)
    if row.verb == "rebalance":
        _rebalance(view, after, items)
    else:
        size = sum(one.bytes for one in items)
        # What came to it since it began is its work too.
        after.total_extents = max(row.total_extents, len(items))
        after.total_bytes = max(row.total_bytes, size)
        after.done_extents = after.total_extents - len(items)
        after.done_bytes = after.total_bytes - size
    if row.cancelled_by:
        over = _ended(after, "cancelled", [], now_ms)
        leaves = after_cancelling(view, facts, row) if row.verb in ("move", "drain", "delete") else ""
        over.outcome += f"; {leaves}" if leaves else ""
        return over
    if left_ms := _lease_left_ms(view, row, now_ms):
        if explain:
            obstacles = Obstacles(view, facts, now_ms)
            _list(after, [(one, why) for one in items if (why := obstacles.of(row.verb, one)) is not None])
            after.outcome = _lease_sentence(after, len(items), left_ms)
        return after
    if not items and not after.moves:
        return _ended(after, "done", [], now_ms)
    progressed = (after.done_extents, after.done_bytes) != (row.done_extents, row.done_bytes)
    if progressed:
        after.progressed_ms = now_ms
    if not items or (progressed and not row.stuck_since_ms and not explain):
        return after
    obstacles = Obstacles(view, facts, now_ms)
    found = [(one, obstacles.of(row.verb, one)) for one in items]
    held = [(one, obstacle) for one, obstacle in found if obstacle is not None]
    if explain:
        _list(after, held)
    stuck = [(one, obstacle) for one, obstacle in held if not obstacle.waits]
    if len(stuck) < len(items):
        after.stuck_since_ms = 0
        return after
    after.stuck_since_ms = row.stuck_since_ms or now_ms
    final = all(obstacle.final for _, obstacle in stuck)
    braked = bool(facts.brake)
    if final or (now_ms - after.stuck_since_ms >= facts.policy.process_patience_ms and not braked):
        return _ended(after, "incomplete", stuck, now_ms)
    return after


def _lease_left_ms(view: ClusterView, row: ProcessRow, now_ms: int) -> int:
    """For how long more may come to it that was asked for: extents that old leases write under an older policy."""
    entry = view.namespaces_by_id.get(row.namespace) if row.verb == "rewrite" else None
    return 0 if entry is None else reclassing.lease_left_ms(entry.row, now_ms)


def _lease_sentence(row: ProcessRow, items: int, left_ms: int) -> str:
    waits = f"it waits for leases from before the update, which live for {-(-left_ms // 1000)} s"
    held = f"; {row.skipped_total} of the {items} extents that are left cannot go on: " if row.skipped else ""
    return waits + held + (row.skipped[0].why if row.skipped else "")


def _list(row: ProcessRow, held: Sequence[tuple[Left, Obstacle]]) -> None:
    row.skipped = [Skipped(one.extent, one.bytes, one.records, why.why) for one, why in held[:SKIPPED_MAX]]
    row.skipped_total = len(held)


def _ended(row: ProcessRow, state: str, stuck: Sequence[tuple[Left, Obstacle]], now_ms: int) -> ProcessRow:
    row.ended_ms = now_ms
    row.stuck_since_ms = 0
    _list(row, stuck)
    if state == "done":
        row.state = "done"
        row.outcome = _done_sentence(row)
    elif state == "cancelled":
        row.state = "cancelled"
        done = f"{row.done_extents} of {row.total_extents} extents"
        row.outcome = f"cancelled by {row.cancelled_by} after {done}; what was done stays"
        if row.verb == "restore" and row.volumes:
            row.outcome += "; audit the volume before you trust it again"
    else:
        row.state = "incomplete"
        size = sum(one.bytes for one, _ in stuck)
        row.outcome = (
            f"{row.done_extents} of {row.total_extents} extents done; {len(stuck)} extents with {size} bytes are left: "
            f"{stuck[0][1].why}"
        )
    return row


def _done_sentence(row: ProcessRow) -> str:
    size = f"{row.total_bytes} bytes in {row.total_extents} extents"
    match row.verb:
        case "backup":
            return f"copied {size}" if row.total_bytes else "nothing to copy: 0 bytes"
        case "audit":
            bad = f"{row.found_total} locations found bad" + (" and mended" if row.fix and row.found_total else "")
            before = len(row.known_bad)
            known = f"; {before} were marked bad before: they are replaced, not read again" if before else ""
            return f"read back {size}; {bad}{known}"
        case "rewrite":
            return f"{size} have the present policy"
        case "delete":
            return f"removed, with {size} whose other locations were proven first"
        case "move" | "drain":
            return f"moved {size}: nothing is needed from there any more, it is safe to stop"
        case "restore":
            return f"rebuilt {size}"
        case _:
            return f"moved {size}"


def _given_back(row: ProcessRow) -> tuple[int, ...]:
    """Volumes that are as before once the process has ended like this.

    What was emptied stays empty until it is released; what was declared lost and rebuilt stays declared lost.
    """
    if row.state == "done" or row.verb not in ("move", "drain", "delete", "restore"):
        return ()
    if row.verb == "restore" and row.state != "cancelled":
        return ()  # what could not be rebuilt is still only there, if anywhere
    return tuple(row.volumes)


def _seal(view: ClusterView, row: ProcessRow) -> list[Action]:
    """Open extents from before the process on its volumes: sealed, they can be read back as a whole, or leave.

    Writes go on in new ones.
    """
    return [
        SealExtent(extent, fencing=False, why=f"{row.verb} of {row.what}")
        for volume in row.volumes
        for extent in view.extents_by_volume.get(volume, ())
        if (opened := view.extents[extent].row).open and opened.opened_ms < row.created_ms
    ]


def _note_found(view: ClusterView, row: ProcessRow) -> None:
    known = set(row.known_bad)
    bad = [each for each in bad_on(view, row.volumes, row.created_ms) if each not in known]
    found = set(row.found)
    row.found = [*row.found, *(each for each in bad if each not in found)][:FOUND_MAX]
    # Beyond what one row holds, those that are there at one time are counted.
    row.found_total = max(row.found_total, len(row.found), len(bad))


def _rebalance(view: ClusterView, row: ProcessRow, items: Sequence[Left]) -> None:
    """Take what has moved off the budgets, and begin the next moves."""
    still = {(one.extent, one.volume) for one in items}
    budget = dict(row.budget)
    for extent, volume in row.moves:
        if (extent, volume) in still:
            continue
        size = view.extents[extent].row.length if extent in view.extents else 0
        budget[volume] = budget.get(volume, 0) - size
        row.done_extents += 1
        row.done_bytes += size
    moves = [move for move in row.moves if move in still]
    begun = {extent for extent, _ in moves}
    for volume, size in budget.items():
        planned = sum(view.extents[extent].row.length for extent, off in moves if off == volume)
        for extent in sorted(view.extents_by_volume.get(volume, ())):
            if len(moves) >= MOVES_MAX or planned >= size:
                break
            known = view.extents[extent].row
            here = [each for each in known.locations if each.volume == volume]
            if (
                extent in begun
                or known.open
                or any(each.state != "good" for each in here)
                or planned + known.length > size
            ):
                continue
            moves.append((extent, volume))
            begun.add(extent)
            planned += known.length
    row.moves = moves
    row.budget = sorted(budget.items())
    row.total_extents = max(row.total_extents, row.done_extents + len(moves))
    row.total_bytes = max(row.total_bytes, row.done_bytes)
