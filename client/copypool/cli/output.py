"""How things look for people. Pure: values in, text out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from copypool.protocol.api import NodeInfo, StatReply, StatusReply
from copypool.protocol.protection import NamespaceProtection, PoolProtection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from copypool.uploading import Progress

_REASONS_MAX = 8
_NODES_MAX = 12
_NAMESPACES_MAX = 12


def readable_bytes(count: int) -> str:
    """`1.5 MiB`; exact below 1 KiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def readable_age(seconds: float) -> str:
    """`3.2 s`, `5 min`, `2.0 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def readable_time(unix_s: float | None) -> str:
    """UTC, to the second; `-` for never."""
    if unix_s is None:
        return "-"
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def printable(name: str) -> str:
    """A name that cannot move the cursor or hide: control characters are escaped."""
    if name.isprintable():
        return name
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in name)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, for reading."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def status_text(status: StatusReply) -> str:
    """One screen; the first line says whether everything is where policy says."""
    if status.healthy and status.unverified_bytes:
        young = f"{readable_bytes(status.unverified_bytes)} are young and not read back yet"
        first = f"OK: every live byte is where policy says; {young}"
    elif status.healthy and status.empty:
        first = "OK: empty: nothing to prove"
    elif status.healthy:
        first = "OK: every live byte is proven to be where policy says"
    else:
        first = f"NOT OK: {status.reasons[0] if status.reasons else 'no reason was given'}"
    lines = [first]
    lines += [f"        {reason}" for reason in status.reasons[1:_REASONS_MAX]]
    if len(status.reasons) > _REASONS_MAX:
        lines.append(f"        and {len(status.reasons) - _REASONS_MAX} more reasons (--json)")
    stored = f"{status.files} files, {readable_bytes(status.bytes)} (as of {readable_time(status.as_of_unix_s)})"
    if not status.as_of_unix_s:
        stored = "not counted yet"
    debt = f"{readable_bytes(status.debt_bytes)} in {status.debt_extents} extents, oldest "
    unread = f"{readable_bytes(status.unverified_bytes)} not read back yet"
    below = f"{status.under_protected_extents} extents below policy, {status.damaged_locations} damaged locations"
    catalog = "does not answer" if status.catalog_down else readable_bytes(status.catalog_bytes)
    leader = f"{status.leader or 'none'} (answered by {status.coordinator})"
    doubtful = f", up to {status.doubtful_files} on damaged locations alone" if status.doubtful_files else ""
    holed = f"; {status.holed_extents} extents hold lost bytes" if status.holed_extents else ""
    lines += [
        "",
        f"files       {stored}",
        f"copy debt   {debt}{readable_age(status.debt_oldest_s)}",
        f"protection  {below}, {unread}",
        f"files gone  {status.unavailable_files} unavailable, {status.lost_files} lost{doubtful}{holed}",
        f"leader      {leader}, catalog {catalog}",
    ]
    if status.scrub is not None and status.scrub.oldest_s:
        speed = f"{readable_bytes(int(status.scrub.bytes_per_s))}/s lately"
        within = f"period {readable_age(status.scrub.period_s)}"
        lines.append(f"scrub       all read back within {readable_age(status.scrub.oldest_s)} ({within}), {speed}")
    owing = [(each.pool, each) for each in status.pools if each.debt_bytes]
    lines += [f"RPO         pool {name}: {_owed(each)}" for name, each in owing]
    lines += [
        f"RPO         namespace {printable(each.namespace)}: {_owed(each)}"
        for each in status.namespaces[:_NAMESPACES_MAX]
        if each.debt_bytes
    ]
    lines += [f"warning     {warning}" for warning in status.warnings]
    if status.brake:
        lines.append(f"brake       {status.brake}")
    away = [node for node in status.nodes if node.state != "up"]
    known = " when etcd was last heard" if status.catalog_down else ""
    lines.append(f"nodes       {len(status.nodes) - len(away)} of {len(status.nodes)} up{known}")
    lines += [f"            {_absence(node)}" for node in away[:_NODES_MAX]]
    if len(away) > _NODES_MAX:
        lines.append(f"            and {len(away) - _NODES_MAX} more (copypool nodes)")
    lines += [
        f"            {node.name} is in maintenance until {readable_time(node.maintenance_until_unix_s)}"
        for node in status.nodes
        if node.maintenance_until_unix_s is not None
    ]
    return "\n".join(lines)


def _absence(node: NodeInfo) -> str:
    if node.state == "silent":
        return f"{node.name} is silent: last heard {readable_age(node.heartbeat_age_s or 0.0)} ago"
    return f"{node.name} is away since {readable_time(node.away_since_unix_s)}"


def _owed(debt: PoolProtection | NamespaceProtection) -> str:
    size = readable_bytes(debt.debt_bytes)
    return f"{size} in {debt.debt_records} records not copied, oldest {readable_age(debt.debt_oldest_s)}"


def stat_text(stat: StatReply) -> str:
    """A file and all locations of all its segments."""
    lines = [
        f"file      {printable(f'{stat.namespace}/{stat.path}')}",
        f"version   {stat.version}, stored {readable_time(stat.stored_unix_s)}",
        f"size      {stat.size} bytes ({readable_bytes(stat.size)})",
        f"digest    {stat.digest}",
    ]
    lines += [f"metadata  {printable(key)} = {printable(value)}" for key, value in sorted(stat.metadata.items())]
    if stat.older_versions:
        lines.append(f"older     {', '.join(map(str, stat.older_versions))}")
    rows = [
        [
            str(number),
            f"{segment.extent}{' sealed' if segment.sealed else ' open'}",
            str(location.offset),
            f"{location.length}/{segment.length}",
            f"{location.pool} ({location.pool_type})" if location.pool != location.pool_type else location.pool,
            location.volume,
            location.node,
            location.state if location.reachable else f"{location.state}, away",
            readable_time(location.verified_unix_s),
        ]
        for number, segment in enumerate(stat.segments)
        for location in segment.locations
    ]
    head = ["segment", "extent", "offset", "length", "pool", "volume", "node", "state", "verified"]
    return "\n".join([*lines, "", table(head, rows)])


@contextmanager
def progress_bar(what: str, total_bytes: int | None, *, quiet: bool) -> Iterator[Progress | None]:
    """A progress bar on standard error when that is a terminal; else None."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(what), total=total_bytes)
        yield lambda count: bar.advance(task, count)
