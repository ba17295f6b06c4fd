"""Commands that tell how well things are protected and why: prove, explain, events, occupancy, content."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from copypool.cli.options import Verb, run, settings, show_json
from copypool.cli.output import printable, readable_bytes, readable_time, table
from copypool.protocol.errors import Invalid
from copypool.protocol.insight import CopyCount, Coverage

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
    policy says and was read back within two scrub periods; 3: not everything.
    """
    if scope and prefix:
        raise Invalid("name the scope once: as the argument or with --prefix")
    namespace, below = _scope(scope or prefix)
    if pool and namespace:
        raise Invalid("a proof is of a pool or of a namespace, not of both")

    async def work(client: Client) -> bool:
        show = sys.stderr.isatty() and not settings().json

        def page(total: Coverage) -> None:
            if show:
                click.echo(f"\r{total.files} files, {readable_bytes(total.bytes)} looked at", nl=False, err=True)

        found = await client.insight.prove(pool=pool, namespace=namespace, prefix=below, on_page=page)
        if show:
            click.echo("\r\033[K", nl=False, err=True)
        if settings().json:
            show_json({"proven": found.proven, "coverage": found})
        else:
            what = f"pool {pool}" if pool else (scope or prefix or namespace or "the whole cluster")
            click.echo(coverage_text(found, what))
        return found.proven

    if not run(work):
        sys.exit(NOT_PROVEN)


def _scope(text: str) -> tuple[str, str]:
    given = settings().namespace
    if given is not None:
        return given, text
    namespace, _, below = text.partition("/")
    return namespace, below


def coverage_text(found: Coverage, what: str) -> str:
    """A proof for people; the first line answers."""
    if found.proven:
        first = f"PROVEN: all of {printable(what)} is where policy says, and was read back in time"
    else:
        unproven = found.files - found.proven_files
        size = readable_bytes(found.bytes - found.proven_bytes)
        first = f"NOT PROVEN: {unproven} of {found.files} files ({size}) of {printable(what)}"
    lines = [
        first,
        "",
        f"all        {found.files} files, {readable_bytes(found.bytes)}",
        f"at policy  {found.at_policy_files} files, {readable_bytes(found.at_policy_bytes)}",
        f"proven     {found.proven_files} files, {readable_bytes(found.proven_bytes)}",
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
    lines.append(table(["on", "different", "files", "bytes"], counts))
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
    head = ["pool", "type", "files", "bytes", "files missing", "missing", "never read back", "oldest read back"]
    lines += ["", table(head, pools)]
    if found.problems:
        lines += ["", "not proven, for example:"]
        lines += [f"  {printable(each.what)}: {each.why}" for each in found.problems[:_PROBLEMS_SHOWN]]
    return "\n".join(lines)
