"""Commands about the cluster: status, nodes, volumes, pools, damaged, wait."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from copypool.cli.options import Verb, run, settings, show_json, show_json_line
from copypool.cli.output import printable, readable_bytes, readable_time, status_text, table
from copypool.protocol.insight import WAY_OUT

if TYPE_CHECKING:
    from copypool.client import Client

T = TypeVar("T")

NOT_HEALTHY = 3  #: exit code of `status`


@click.command(cls=Verb)
def status() -> None:
    """Is everything where policy says? The first line answers. Exit code 0: yes; 3: no, or not known.

    While etcd is away the answer is a no from memory: `catalog_down` in --json, exit code 3. Exit code 7: no
    coordinator answers.
    """

    async def work(client: Client) -> bool:
        found = await client.status()
        if settings().json:
            show_json(found)
        else:
            click.echo(status_text(found))
        return found.healthy

    if not run(work):
        sys.exit(NOT_HEALTHY)


def _show_list(
    fetch: Callable[[Client], Awaitable[Sequence[T]]], head: Sequence[str], row: Callable[[T], Sequence[str]]
) -> None:
    async def work(client: Client) -> None:
        items = await fetch(client)
        if settings().json:
            show_json({"items": items})
        else:
            click.echo(table(head, [row(item) for item in items]))

    run(work)


@click.command(cls=Verb)
def nodes() -> None:
    """Storage nodes and whether their sessions live."""
    _show_list(
        lambda client: client.nodes(),
        ["node", "state", "zone", "volumes", "free", "total", "heartbeat", "away since", "url"],
        lambda node: [
            node.name,
            "taken out" if node.taken_out else node.state,
            node.zone or "-",
            str(node.volumes),
            readable_bytes(node.free_bytes),
            readable_bytes(node.total_bytes),
            "-" if node.heartbeat_age_s is None else f"{node.heartbeat_age_s:.1f} s",
            readable_time(node.away_since_unix_s),
            node.url,
        ],
    )


@click.command(cls=Verb)
def volumes() -> None:
    """Volumes, what they hold and what is wrong with them."""
    _show_list(
        lambda client: client.volumes(),
        ["volume", "pool", "node", "access", "reachable", "extents", "stored", "free", "damaged", "unknown"],
        lambda volume: [
            volume.name,
            volume.pool,
            volume.node or "-",
            f"{volume.access}, {volume.intent}" if volume.intent else volume.access,
            "yes" if volume.reachable else "no",
            str(volume.extents),
            readable_bytes(volume.stored_bytes),
            readable_bytes(volume.free_bytes),
            str(volume.damaged),
            str(volume.unknown_extents),
        ],
    )


@click.command(cls=Verb)
def pools() -> None:
    """Storage pools and, for copy pools, what is not copied into them yet."""
    _show_list(
        lambda client: client.pools(),
        ["pool", "type", "nodes", "volumes", "extents", "stored", "debt"],
        lambda pool: [
            pool.name,
            pool.type,
            str(pool.nodes),
            str(pool.volumes),
            str(pool.extents),
            readable_bytes(pool.stored_bytes),
            readable_bytes(pool.debt_bytes),
        ],
    )


@click.command(cls=Verb)
@click.option("--files", is_flag=True, help="Files that are lost, or may be, by a paced scan of the directory.")
def damaged(files: bool) -> None:
    """Locations whose bytes failed their own node's check, or whose file is gone, and that are not rebuilt yet.

    With --files the files that no reachable location is known to have whole: `lost`, since a block of them is bad
    everywhere; `doubtful`, since only reading them tells; `away`, since a node that has them is. With --json one per
    line.
    """
    if files:
        run(_show_damaged_files)
        return
    _show_list(
        lambda client: client.damaged(),
        ["extent", "volume", "node", "generation", "state", "bad at", "since", "evidence"],
        lambda entry: [
            str(entry.extent),
            entry.volume,
            entry.node,
            str(entry.generation),
            entry.state,
            str(entry.bad_offset) if entry.bad_offset >= 0 else "-",
            readable_time(entry.since_unix_s),
            printable(entry.evidence),
        ],
    )


async def _show_damaged_files(client: Client) -> None:
    given = settings().namespace
    names = [given] if given is not None else [each.name for each in await client.namespaces()]
    lost = False
    async for namespace, file in client.insight.damaged_files(names):
        lost |= file.outlook == "lost"
        if settings().json:
            show_json_line({"namespace": namespace, "file": file})
        else:
            click.echo(f"{printable(f'{namespace}/{file.path}')}  {file.outlook}  extent {file.extent}: {file.why}")
    if lost and not settings().json:
        click.echo(f"The way out: {WAY_OUT}", err=True)


@click.command(cls=Verb)
@click.option("--copied", is_flag=True, required=True, help="Until everything stored before now is copied.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=600.0, show_default=True, help="Seconds.")
def wait(copied: bool, timeout_s: float) -> None:
    """Wait for a condition; exit code 7 when the time is up first. --namespace NAME: only what it has stored."""
    del copied

    async def work(client: Client) -> None:
        reply = await client.wait_copied(timeout_s, namespace=settings().namespace or "")
        if settings().json:
            show_json({"done": reply.done, "debt_bytes": reply.debt_bytes, "debt_extents": reply.debt_extents})
        else:
            click.echo("copied")

    run(work)
