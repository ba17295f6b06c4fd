"""How processes and their previews look for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from copypool.cli.output import printable, readable_age, readable_bytes, readable_time, table
from copypool.protocol.processes import Preview, ProcessInfo, SkippedEntry

_SHOWN_MAX = 20


def _eta(seconds: float | None) -> str:
    return "-" if seconds is None else readable_age(seconds)


def process_line(one: ProcessInfo) -> list[str]:
    return [
        one.id,
        one.verb,
        printable(one.what),
        one.state,
        readable_bytes(one.done_bytes),
        readable_bytes(one.total_bytes),
        f"{readable_bytes(round(one.bytes_per_s))}/s",
        _eta(one.eta_s),
        printable(one.who),
        readable_time(one.created_unix_s),
    ]


def process_text(one: ProcessInfo) -> str:
    """One process for reading."""
    of = readable_bytes(one.total_bytes)
    done = f"{one.done_extents} of {one.total_extents} extents, {readable_bytes(one.done_bytes)} of {of}"
    lines = [
        f"process   {one.id}: {one.verb} of {printable(one.what)}, asked for by {printable(one.who)}",
        f"state     {one.state}, started {readable_time(one.created_unix_s)}, ended {readable_time(one.ended_unix_s)}",
        f"done      {done}, {readable_bytes(round(one.bytes_per_s))}/s, ETA {_eta(one.eta_s)}",
    ]
    if one.verb == "audit":
        lines.append(f"found     {one.found_damaged} bad locations")
    if one.outcome:
        lines.append(f"outcome   {printable(one.outcome)}")
    if one.skipped:
        lines += ["", _skipped_table(one.skipped, one.skipped_total)]
    return "\n".join(lines)


def _skipped_table(entries: Sequence[SkippedEntry], total: int, why: str = "why not") -> str:
    rows = [
        [str(each.extent), readable_bytes(each.bytes), str(each.records), printable(each.why)]
        for each in entries[:_SHOWN_MAX]
    ]
    text = table(["extent", "bytes", "records", why], rows)
    return text if total <= _SHOWN_MAX else f"{text}\nand {total - _SHOWN_MAX} more (--json)"


def preview_text(found: Preview) -> str:
    """What would be done, for reading."""
    size = _amount(found.extents, found.bytes, found.records)
    lines = [f"{found.verb} of {printable(found.what)}: {size}"]
    if found.verb not in ("audit", "delete"):
        lines += _origin_lines(found)
    lines += [
        f"ETA         {_eta(found.eta_s)}" + ("" if found.eta_s is not None else " (no such process has run yet)"),
        f"cannot be   {_amount(found.blocked_extents, found.blocked_bytes, found.blocked_records)}",
    ]
    if found.verb == "delete":
        lines.append(f"would die   {found.dies_extents} extents")
    lines += [f"note        {printable(note)}" for note in found.notes]
    if found.merged:
        lines += ["", _skipped_table(found.merged, found.merged_extents, "why perhaps not")]
    if found.blocked:
        lines += ["", _skipped_table(found.blocked, found.blocked_extents)]
    return "\n".join(lines)


def _amount(extents: int, size_bytes: int, records: int) -> str:
    return f"{extents} extents, {readable_bytes(size_bytes)}, {records} records"


def _origin_lines(found: Preview) -> list[str]:
    """From whom: whole ones volume by volume, then what only a merge could make."""
    lines = [
        f"read from   {each.volume}: {each.extents} extents, {readable_bytes(each.bytes)}"
        for each in found.shares[:_SHOWN_MAX]
    ]
    if len(found.shares) > _SHOWN_MAX:
        lines.append(f"read from   {len(found.shares) - _SHOWN_MAX} volumes more (--json)")
    if not found.shares:
        lines.append("read from   no whole location" if found.merged_extents else "read from   -")
    if found.merged_extents:
        merged = _amount(found.merged_extents, found.merged_bytes, found.merged_records)
        lines.append(f"perhaps     {merged}: without a whole location, known only when tried")
    return lines
