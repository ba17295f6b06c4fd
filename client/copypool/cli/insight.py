"""Commands that tell how well things are protected and why: prove, explain, events, occupancy, content."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from copypool.cli.options import Verb, place_of, run, settings, show_json, show_json_line
from copypool.cli.output import printable, readable_bytes, readable_time, table
from copypool.protocol.api import Event
from copypool.protocol.errors import Invalid
from copypool.protocol.insight import CopyCount, Coverage, ExplainReply, LogRequest

if TYPE_CHECKING:
    from copypool.client import Client

NOT_PROVEN = 3  #: exit code of `prove` and `explain`, as of `status`
_PROBLEMS_SHOWN = 20


@click.command(cls=Verb)
@click.argument("scope", required=False, default="", metavar="[NAMESPACE[/PREFIX]]")
@click.option("--pool", default="", metavar="POOL", help="All extents whose class names this pool.")
@click.option("--prefix", default="", metavar="NAMESPACE/PREFIX", help="The same as the argument.")
def prove(scope: str, pool: str, prefix: str) -> None:
    """Count how well everything is protected: files and bytes at 0, 1, 2, ... good copies.

    Without a scope, or with --pool, the catalog's extents are counted (files are records then); with a namespace or
    prefix the current files in it, by a paced scan of the directory. Exit code 0: everything in scope is where
    policy says, and was read back within two scrub periods or is too young for that (the first line and
    `proven` of --json tell which); 3: not everything.
    """
    if scope and prefix:
        raise Invalid("name the scope once: as the argument or with --prefix")
    namespace, below = _scope(scope or prefix)
    if pool and namespace:
        raise Invalid("a proof is of a pool or of a namespace, not of both")
    unit = "files" if namespace else "records"

    async def work(client: Client) -> bool:
        show = sys.stderr.isatty() and not settings().json

        def page(total: Coverage) -> None:
            if show:
                click.echo(f"\r{total.files} {unit}, {readable_bytes(total.bytes)} looked at", nl=False, err=True)

        found = await client.insight.prove(pool=pool, namespace=namespace, prefix=below, on_page=page)
        if show:
            click.echo("\r\033[K", nl=False, err=True)
        if settings().json:
            show_json({"proven": found.proven, "empty": found.files == 0, "measure": unit, "coverage": found})
        else:
            what = f"pool {pool}" if pool else (scope or prefix or namespace or "the whole cluster")
            click.echo(coverage_text(found, what, unit))
        return found.sound

    if not run(work):
        sys.exit(NOT_PROVEN)


def _scope(text: str) -> tuple[str, str]:
    given = settings().namespace
    if given is not None:
        return given, text
    namespace, _, below = text.partition("/")
    return namespace, below


def coverage_text(found: Coverage, what: str, unit: str = "files") -> str:
    """A proof for people; the first line answers. `unit`: what was counted, `files` or, by extents, `records`."""
    if not found.files:
        return f"EMPTY: there is nothing in {printable(what)}: nothing to prove"
    if found.proven:
        first = f"PROVEN: all of {printable(what)} is where policy says, and was read back in time"
    elif found.sound:
        young = f"{found.young_files} {unit} ({readable_bytes(found.young_bytes)}) are young and not read back yet"
        first = f"AT POLICY: all of {printable(what)} is where policy says; {young}"
    else:
        unproven = found.files - found.proven_files - found.young_files
        size = readable_bytes(found.bytes - found.proven_bytes - found.young_bytes)
        first = f"NOT PROVEN: {unproven} of {found.files} {unit} ({size}) of {printable(what)}"
    lines = [
        first,
        "",
        f"all        {found.files} {unit}, {readable_bytes(found.bytes)}",
        f"at policy  {found.at_policy_files} {unit}, {readable_bytes(found.at_policy_bytes)}",
        f"proven     {found.proven_files} {unit}, {readable_bytes(found.proven_bytes)}",
        f"young      {found.young_files} {unit}, {readable_bytes(found.young_bytes)}",
        "",
    ]
    levels: list[tuple[str, list[CopyCount]]] = [
        ("good copies", found.copies),
        ("nodes", found.nodes),
        ("hosts", found.hosts),
        ("zones", found.zones),
    ]
    counts = [
        [str(each.count), name, str(each.files), readable_bytes(each.bytes)] for name, rows in levels for each in rows
    ]
    lines.append(table(["on", "different", unit, "bytes"], counts))
    pools = [
        [
            each.pool,
            each.type,
            str(each.files),
            readable_bytes(each.bytes),
            str(each.missing_files),
            readable_bytes(each.missing_bytes),
            readable_bytes(each.never_verified_bytes),
            readable_time(each.oldest_verified_unix_s),
        ]
        for each in found.pools
    ]
    head = ["pool", "type", unit, "bytes", f"{unit} missing", "missing", "never read back", "oldest read back"]
    lines += ["", table(head, pools)]
    if found.problems:
        lines += ["", "not proven, for example:"]
        lines += [f"  {printable(each.what)}: {each.why}" for each in found.problems[:_PROBLEMS_SHOWN]]
    return "\n".join(lines)


@click.command(cls=Verb)
@click.argument("file", metavar="NAMESPACE/PATH")
@click.option("--version", default=0, metavar="N", help="This version instead of the current one.")
@click.option("--zone", default="", metavar="ZONE", help="Explain it for a reader in this zone.")
def explain(file: str, version: int, zone: str) -> None:
    """Where each copy of a file is, why a read would go where, and what is being done about what is missing.

    Exit code 0: it is where policy says; 3: it is not.
    """

    async def work(client: Client) -> bool:
        place = place_of(file, client.namespace)
        found = await client.insight.explain(place.namespace, place.path, version=version, zone=zone)
        if settings().json:
            show_json(found)
        else:
            click.echo(explain_text(found))
        return found.policy_met

    if not run(work):
        sys.exit(NOT_PROVEN)


def explain_text(found: ExplainReply) -> str:
    """An explanation for people; the first line answers."""
    name = printable(f"{found.namespace}/{found.path}")
    if found.proven:
        first = f"{name} is where policy says, and was read back in time"
    elif found.policy_met:
        first = f"{name} is where policy says; not all of it was read back yet, or not lately"
    else:
        first = f"{name} is NOT where policy says"
    stored = f"version {found.version}, {found.size} bytes, stored {readable_time(found.stored_unix_s)}, {found.digest}"
    lines = [first, stored, *found.notes]
    for number, each in enumerate(found.segments):
        state = "sealed" if each.sealed else "open"
        pools = ", ".join([each.primary_pool, *each.copy_pools])
        lines += [
            "",
            f"segment {number}: {each.length} bytes at {each.offset} of extent {each.extent} ({state})",
            f"  wanted in {pools}; its class has ack rule {each.ack!r} (a write's receipt says which was met)",
        ]
        for copy in each.copies:
            where = f"{copy.volume} on {copy.node} (host {copy.host or '-'}, zone {copy.zone or '-'}), pool {copy.pool}"
            state = copy.state if copy.reachable else f"{copy.state}, not reachable ({copy.access})"
            counts = "counts" if copy.counted else "does not count"
            rank = f"{copy.rank}." if copy.rank else "-"
            held = f"{copy.held_bytes}/{each.length} bytes, {counts}"
            lines += [
                f"  {rank:<3}{where}",
                f"     {state}, {held}, read back {readable_time(copy.verified_unix_s)}",
                f"     {printable(copy.why)}",
            ]
        lines += [f"  lacks: {printable(lack)}" for lack in each.lacks]
        lines += [f"  doing: {printable(doing)}" for doing in each.doing]
    return "\n".join(lines)


def _since(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """`90s`, `15m`, `2h`, `3d` before now, or a time as ISO 8601 says it (UTC unless it names a zone)."""
    if not value:
        return 0.0
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(value[-1])
    try:
        if unit is not None and value[:-1].isdigit():
            return time.time() - int(value[:-1]) * unit
        moment = datetime.fromisoformat(value)
    except ValueError as exc:
        raise click.BadParameter("a time as 2026-05-01T12:00, or an age as 90s, 15m, 2h, 3d") from exc
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


@click.command(cls=Verb)
@click.option("--last", type=click.IntRange(1, 1000), default=200, show_default=True, help="At most so many old ones.")
@click.option("--follow", is_flag=True, help="Go on showing new ones.")
@click.option("--after", default="", metavar="ID", help="Only events after this one.")
@click.option(
    "--since", "since_unix_s", default="", metavar="TIME", callback=_since, help="A time, or an age as 15m, 2h."
)
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only these kinds; may be repeated.")
@click.option("--volume", default="", metavar="VOLUME")
@click.option("--node", default="", metavar="NODE")
@click.option("--extent", type=click.IntRange(min=0), default=None, metavar="N")
@click.option("--chain", default="", metavar="ID", help="What led to this event and what followed from it.")
def events(
    last: int,
    follow: bool,
    after: str,
    since_unix_s: float,
    kinds: tuple[str, ...],
    volume: str,
    node: str,
    extent: int | None,
    chain: str,
) -> None:
    """What happened, the newest last, as in a log; with --since or --after all from there. --json: one per line."""
    request = LogRequest(after, since_unix_s, [*kinds], volume, node, -1 if extent is None else extent)
    if not after and not since_unix_s:
        request.newest, request.limit = True, last

    async def work(client: Client) -> None:
        if chain:
            found = await client.insight.chain(chain)
            for event in found.events:
                _show_event(event)
            if found.truncated and not settings().json:
                click.echo("... and more", err=True)
            return
        async for event in client.insight.log(request, follow=follow):
            _show_event(event)

    run(work)


def _show_event(event: Event) -> None:
    if settings().json:
        show_json_line(event)
        return
    about = " ".join(part for part in (f"extent {event.extent}" if event.extent else "", event.volume) if part)
    click.echo(
        f"{readable_time(event.unix_s)}  {event.id}  {event.kind}  {event.who}  {about + ': ' if about else ''}"
        f"{printable(event.message)}" + (f"  (caused by {event.cause})" if event.cause else "")
    )


@click.command(cls=Verb)
def occupancy() -> None:
    """What each namespace has in each pool: extents, records, bytes, and what is not copied yet."""

    async def work(client: Client) -> None:
        found = await client.insight.occupancy()
        if settings().json:
            show_json(found)
            return
        rows = [
            [
                printable(each.namespace),
                each.pool,
                each.pool_type,
                str(each.extents),
                str(each.records),
                readable_bytes(each.payload_bytes),
                readable_bytes(each.uncopied_bytes),
            ]
            for each in found.items
        ]
        click.echo(table(["namespace", "pool", "type", "extents", "records", "bytes", "not copied"], rows))

    run(work)


@click.command(cls=Verb)
@click.argument("volume")
@click.option("--files", is_flag=True, help="The files with bytes there, by a paced scan of the directory.")
def content(volume: str, files: bool) -> None:
    """What a volume holds: its extents and their state, or the files with bytes there. With --json one per line."""

    async def work(client: Client) -> None:
        if files:
            await _show_files(client, volume)
            return
        head = "extent  generation  state  length  records  good elsewhere  read back  namespaces  evidence"
        async for entry in client.insight.content(volume):
            if settings().json:
                show_json_line(entry)
                continue
            if head:
                click.echo(head)
                head = ""
            state = f"{entry.state}{', open' if entry.open else ''}"
            names = ", ".join(map(printable, entry.namespaces)) or "-"
            click.echo(
                f"{entry.extent}  {entry.generation}  {state}  {entry.length}  {entry.records}  {entry.good_elsewhere}"
                f"  {readable_time(entry.verified_unix_s)}  {names}  {printable(entry.evidence)}".rstrip()
            )
        if head and not settings().json:
            click.echo(f"{printable(volume)} holds nothing")

    run(work)


async def _show_files(client: Client, volume: str) -> None:
    given = settings().namespace
    names = [given] if given is not None else [each.name for each in await client.namespaces()]
    async for namespace, file in client.insight.content_files(volume, names):
        if settings().json:
            show_json_line({"namespace": namespace, "file": file})
        else:
            name = printable(f"{namespace}/{file.path}")
            click.echo(f"{name}  {file.here_bytes} of {file.size} bytes")
