"""Operators' verbs: restore, audit, move, drain, rebalance, delete, backup; and the processes that they start."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from copypool.cli.options import Verb, Verbs, confirm, run, settings, show_json
from copypool.cli.output import printable, table
from copypool.cli.process_text import preview_text, process_line, process_text
from copypool.protocol.processes import ProcessInfo, ProcessRequest

if TYPE_CHECKING:
    from copypool.client import Client

CANCEL_WAIT_S = 10.0  #: for the leader to end a process that was cancelled
NOT_ALL_DONE = 3  #: exit code: the process is over and not everything is as it was asked for

F = TypeVar("F", bound=Callable[..., Any])


def _job(function: F) -> F:
    """Options that every verb that starts a process takes."""
    function = click.option("--no-wait", is_flag=True, help="Print the process's id and return.")(function)
    return click.option(
        "--preview",
        "--dry-run",
        "preview",
        is_flag=True,
        help="Show what would be done, and what could not; do nothing.",
    )(function)


_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group(cls=Verbs, invoke_without_command=True)
@click.option("--prefix", default="", help="With --namespace: only files below this.")
@_job
@click.pass_context
def restore(context: click.Context, prefix: str, preview: bool, no_wait: bool) -> None:
    """Rebuild from the other copies what a volume, node, pool or namespace has lost.

    A volume or node is set `destroyed`: it is never read, and nothing on it is erased. When all of it is elsewhere
    again, it holds nothing that anybody needs. A pool, or what the files of --namespace are in, is made whole at once,
    without waiting for nodes that may come back.
    """
    if context.invoked_subcommand is not None:
        return
    namespace = settings().namespace
    if not namespace:
        raise click.UsageError("name a volume, a node, a pool, or --namespace")
    _start(ProcessRequest("restore", namespace=namespace, prefix=prefix), preview, no_wait)


@restore.command("volume")
@click.argument("volume")
@_yes
@_job
def restore_volume(volume: str, yes: bool, preview: bool, no_wait: bool) -> None:
    """Give a volume up and rebuild everything on it on other volumes of its pool."""
    ask = f"Volume {volume} is given up: it is not read any more, nothing on it is erased. Go on?"
    _start(ProcessRequest("restore", volume=volume), preview, no_wait, ask="" if yes else ask)


@restore.command("node")
@click.argument("node")
@_yes
@_job
def restore_node(node: str, yes: bool, preview: bool, no_wait: bool) -> None:
    """Give all volumes of a node up and rebuild everything on them elsewhere."""
    ask = f"All volumes of {node} are given up: they are not read any more, nothing on them is erased. Go on?"
    _start(ProcessRequest("restore", node=node), preview, no_wait, ask="" if yes else ask)


@restore.command("pool")
@click.argument("pool")
@_job
def restore_pool(pool: str, preview: bool, no_wait: bool) -> None:
    """Make a pool whole now, waiting for no node that is away."""
    _start(ProcessRequest("restore", pool=pool), preview, no_wait)


@click.group(cls=Verbs)
def audit() -> None:
    """Read everything on a volume back and compare it with the catalog, while it is in use."""


@audit.command("volume")
@click.argument("volume")
@click.option("--fix", is_flag=True, help="Not done before all that was found bad is mended.")
@_job
def audit_volume(volume: str, fix: bool, preview: bool, no_wait: bool) -> None:
    """Read every location on a volume back. Bad ones are marked, and mended by the cluster itself, as always.

    With --fix this waits for that. Exit code 3 when something bad was found and is not known to be mended.
    """
    _start(ProcessRequest("audit", volume=volume, fix=fix), preview, no_wait)


@click.group(cls=Verbs)
def move() -> None:
    """Move what volumes hold to others of the same pool."""


@move.command("data")
@click.argument("volume")
@click.option("--end", is_flag=True, help="Let an emptied volume take bytes again.")
@_job
def move_data(volume: str, end: bool, preview: bool, no_wait: bool) -> None:
    """Empty a volume: first every new place is good, then the old ones go. It takes no new bytes until --end."""
    if end:
        _release(volume=volume)
    else:
        _start(ProcessRequest("move", volume=volume), preview, no_wait)


@click.group(cls=Verbs)
def drain() -> None:
    """Empty nodes, to stop them or to take them out."""


@drain.command("node")
@click.argument("node")
@click.option("--end", is_flag=True, help="Let the node take bytes again.")
@_job
def drain_node(node: str, end: bool, preview: bool, no_wait: bool) -> None:
    """Empty all volumes of a node; when this is done, it is safe to stop it. It takes no new bytes until --end."""
    if end:
        _release(node=node)
    else:
        _start(ProcessRequest("drain", node=node), preview, no_wait)


@click.command(cls=Verb)
@click.argument("pool", required=False, default="")
@_job
def rebalance(pool: str, preview: bool, no_wait: bool) -> None:
    """Move extents off volumes that are fuller than the mean of their pool; one pool, or all."""
    _start(ProcessRequest("rebalance", pool=pool), preview, no_wait)


@click.command(cls=Verb)
@click.argument("namespace")
@_job
def rewrite(namespace: str, preview: bool, no_wait: bool) -> None:
    """Give older extents of a namespace its present copy pools and ack rule.

    Copies are made before any is dropped. Extents that are shared with namespaces of another policy, or lie in another
    primary pool, stay as they are and are listed; exit code 3 says that there are some. Leases from before the update
    live for a minute, so it does not end sooner.
    """
    _start(ProcessRequest("rewrite", namespace=namespace), preview, no_wait)


@click.group(cls=Verbs)
def delete() -> None:
    """Take things out of the cluster for good."""


@delete.command("volume")
@click.argument("volume")
@click.option(
    "--discard-data", is_flag=True, help="Also when it is not empty, if every byte has another good location."
)
@click.option("--force", default="", metavar="NAME", help="The volume's name again: also when bytes die with it.")
@_yes
@_job
def delete_volume(volume: str, discard_data: bool, force: str, yes: bool, preview: bool, no_wait: bool) -> None:
    """Delete a volume. Refused when a live byte would lose its last good location; --preview lists what would die.

    Survivors are read back before anything goes, and every extent for itself.
    """
    request = ProcessRequest("delete", volume=volume, discard_data=discard_data or bool(force), force=force)
    ask = f"Volume {volume} is deleted, with what is on it. Go on?" if request.discard_data and not yes else ""
    _start(request, preview, no_wait, ask=ask)


@click.group(cls=Verbs)
def backup() -> None:
    """Bring copy pools up to date."""


@backup.command("pool")
@click.argument("pool")
@click.option("--to", multiple=True, metavar="POOL", help="Only to this copy pool. May be repeated.")
@click.option("--wait", "wait", is_flag=True, help="Wait for the end (as it does unless --no-wait).")
@_job
def backup_pool(pool: str, to: tuple[str, ...], wait: bool, preview: bool, no_wait: bool) -> None:
    """Copy what its copy pools lack of everything committed before now. Copies that are good are not made again."""
    _start(ProcessRequest("backup", pool=pool, to=list(to)), preview, no_wait and not wait)


@click.group(cls=Verbs)
def process() -> None:
    """Long jobs: what runs, how far it is, how it ended."""


@process.command("list")
@click.option("--running", is_flag=True, help="Only those that run.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
def process_list(running: bool, limit: int) -> None:
    """Processes, newest first."""

    async def work(client: Client) -> None:
        items = await client.operator.processes(running=running, limit=limit)
        if settings().json:
            show_json({"items": items})
            return
        head = ["id", "verb", "what", "state", "done", "of", "rate", "ETA", "who", "started"]
        click.echo(table(head, [process_line(one) for one in items]))

    run(work)


@process.command("show")
@click.argument("process_id", metavar="ID")
def process_show(process_id: str) -> None:
    """One process: how far it is, or how it ended and what was skipped."""

    async def work(client: Client) -> None:
        _show(await client.operator.process(process_id))

    run(work)


@process.command("cancel")
@click.argument("process_id", metavar="ID")
def process_cancel(process_id: str) -> None:
    """End a process. What it has done stays; what it has set (intents, access modes) is given back.

    The leader ends it within seconds; this waits for that for a while.
    """

    async def work(client: Client) -> ProcessInfo:
        shown = await client.operator.cancel(process_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_WAIT_S):
                async for shown in client.operator.follow(process_id):  # noqa: B007 - the last one counts
                    pass
        return shown

    _show(run(work))


@process.command("wait")
@click.argument("process_id", metavar="ID")
def process_wait(process_id: str) -> None:
    """Follow a process to its end; the exit code is as if it had been started here."""
    _follow(process_id)


def _release(*, volume: str = "", node: str = "") -> None:
    async def work(client: Client) -> None:
        released = await client.operator.release(volume=volume, node=node)
        if settings().json:
            show_json({"volumes": released})
        else:
            click.echo(f"{', '.join(released) or 'none'}: take bytes again")

    run(work)


def _start(request: ProcessRequest, preview: bool, no_wait: bool, *, ask: str = "") -> None:
    """Preview, or ask, start and follow."""
    if preview or ask:
        found = run(lambda client: client.operator.preview(request))
        if preview and settings().json:
            show_json(found)
        else:
            click.echo(preview_text(found), err=not preview)
        if preview:
            return
        confirm(ask)
    started = run(lambda client: client.operator.start(request))
    if no_wait:
        _show(started)
    else:
        _follow(started.id)


def _follow(process_id: str) -> None:
    try:
        ended = run(lambda client: _bar(client, process_id))
    except KeyboardInterrupt:
        click.echo(f"process {process_id} goes on: `copypool process show {process_id}`, or `cancel`", err=True)
        raise
    _show(ended)
    if ended.state != "done" or (ended.found_damaged and " and mended" not in ended.outcome):
        sys.exit(NOT_ALL_DONE)


async def _bar(client: Client, process_id: str) -> ProcessInfo:
    """Follow with a bar on standard error when that is a terminal."""
    last: ProcessInfo | None = None
    if not sys.stderr.isatty() or settings().json:
        async for shown in client.operator.follow(process_id):
            last = shown
        assert last is not None
        return last
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(process_id, total=None)
        async for last in client.operator.follow(process_id):
            what = printable(f"{last.verb} {last.what}" + (f" ({last.outcome})" if last.outcome else ""))
            bar.update(task, description=what, completed=last.done_bytes, total=last.total_bytes or None)
    assert last is not None
    return last


def _show(shown: ProcessInfo) -> None:
    if settings().json:
        show_json(shown)
    else:
        click.echo(process_text(shown))
