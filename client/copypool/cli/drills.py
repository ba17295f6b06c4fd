"""Drills for operators, safe on a production cluster: read from copies alone, and what a node's loss would mean."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from copypool.cli.options import Verb, Verbs, run, settings, show_json
from copypool.cli.output import printable, readable_age, readable_bytes, table
from copypool.cli.quantities import Size
from copypool.protocol.drills import LOSS_NAMES_MAX, SAMPLE_MAX, LossCounts, LossReport, ReadDrill

if TYPE_CHECKING:
    from copypool.client import Client

NOT_PASSED = 3  #: exit code: the drill found something that would fail
_BLOCKED_SHOWN = 10
_SILENT_SHOWN = 5


@click.group(cls=Verbs)
def drill() -> None:
    """Try out, without breaking anything, that what is promised holds. Results are kept in `copypool events`."""


@drill.command("read-from-copies", cls=Verb)
@click.option("--sample", default=100, type=click.IntRange(1, SAMPLE_MAX), show_default=True, help="Files to read.")
@click.option("--seed", default=None, type=click.IntRange(0), metavar="N", help="Draw the same sample again.")
@click.option(
    "--rate", default="32MiB", type=Size(), show_default=True, help="Bytes per second at most; 0 for no limit."
)
def read_from_copies(sample: int, seed: int | None, rate: int) -> None:
    """Read a random sample of the current files from copies alone, as if no primary was there.

    Blocks are checked against their checksums, whole files against the digest in the catalog; nodes read their disks
    and leave their caches alone. With --namespace only files of that one. Files that are not copied yet are counted
    apart. Ctrl-C ends it, with what was done until then as its result in the event log.

    Exit code 0: every file of the sample could be read; 3: not every one.
    """

    async def work(client: Client) -> bool:
        show = sys.stderr.isatty() and not settings().json

        def progress(found: ReadDrill) -> None:
            if show:
                done = f"{found.files} of {found.wanted} files, {readable_bytes(found.read_bytes)}"
                click.echo(f"\r\033[K{done}", nl=False, err=True)

        found = await client.drills.read_from_copies(
            sample=sample, namespace=settings().namespace or "", seed=seed, rate_bytes_s=rate, on_file=progress
        )
        if show:
            click.echo("\r\033[K", nl=False, err=True)
        if settings().json:
            show_json({"passed": found.passed, "bytes_per_s": found.bytes_per_s, "drill": found})
        else:
            click.echo(read_text(found))
        return found.passed

    if not run(work):
        sys.exit(NOT_PASSED)


def read_text(found: ReadDrill) -> str:
    """A read drill for people; the first line answers."""
    scope = f" of namespace {printable(found.namespace)}" if found.namespace else ""
    if not found.files:
        first = f"PASSED: there are no files{scope} to read"
    elif found.passed:
        first = f"PASSED: all {found.read_files} sampled files{scope} were read from copies alone"
    else:
        first = f"NOT PASSED: {found.unread_files} of {found.files} sampled files{scope} cannot be read from copies"
    rate = f"{readable_age(found.took_s)}, {readable_bytes(int(found.bytes_per_s))}/s"
    debt = f"{readable_bytes(found.debt_bytes)}, oldest {readable_age(found.debt_oldest_s)}"
    lines = [
        first,
        "",
        f"read        {found.read_files} files, {readable_bytes(found.read_bytes)} in {rate}",
        f"failed      {found.failed_files} files that copies hold and did not give",
        f"away        {found.away_files} files whose copies cannot be reached now",
        f"not copied  {found.debt_files} files, {debt}",
        f"no copies   {found.copyless_files} files, by policy",
        f"replaced    {found.replaced_files} files, overwritten or deleted meanwhile",
        f"seed        {found.seed}",
    ]
    if found.problems:
        lines += ["", "not read, for example:"]
        lines += [f"  {printable(each.what)}: {printable(each.why)}" for each in found.problems]
    return "\n".join(lines)


@drill.command("lose-node", cls=Verb)
@click.argument("node")
@click.option("--simulate", is_flag=True, help="Only tell what would be; the one thing that this can do.")
@click.option(
    "--names", default=20, type=click.IntRange(0, LOSS_NAMES_MAX), show_default=True, help="Files to name at most."
)
def lose_node(node: str, simulate: bool, names: int) -> None:
    """What the loss of a node would mean: what could not be read, what would be lost, where it would be rebuilt.

    Counted by the functions that protection, repair and placement go by; files are looked at one by one where some
    are at risk. A node counts as there while its session lives; one that is silent meanwhile is named.

    Exit code 0: everything could still be read, and would be rebuilt where policy wants it; 3: not everything.
    """
    if not simulate:
        raise click.UsageError("this only simulates: say --simulate")

    async def work(client: Client) -> bool:
        show = sys.stderr.isatty() and not settings().json

        def page(counts: LossCounts) -> None:
            if show:
                click.echo(f"\r\033[K{counts.unavailable_files} files would be unavailable", nl=False, err=True)

        report = await client.drills.lose_node(node, names=names, on_page=page)
        if show:
            click.echo("\r\033[K", nl=False, err=True)
        if settings().json:
            show_json({"passed": report.passed, "eta_s": report.forecast.eta_s, "report": report})
        else:
            click.echo(loss_text(report))
        return report.passed

    if not run(work):
        sys.exit(NOT_PASSED)


def loss_text(report: LossReport) -> str:
    """A simulated loss for people; the first line answers."""
    found, counts = report.forecast, report.counts
    name = printable(found.node)
    if report.passed:
        first = f"{_passed(found.silent)}: without {name} every file could be read, and everything would be rebuilt"
    elif counts.unavailable_files:
        size = readable_bytes(counts.unavailable_bytes)
        first = f"NOT PASSED: without {name} {counts.unavailable_files} files ({size}) could not be read"
    elif counts.doubtful_files or found.doubtful_extents:
        first = f"NOT PASSED: without {name} {counts.doubtful_files} files hang on damaged or leaving copies"
    else:
        first = f"NOT PASSED: without {name} every file could be read, but not everything would be rebuilt as wanted"
    lines = [first, "", *_sums(report)]
    if found.places:
        rows = [
            [
                each.volume,
                each.pool,
                each.node,
                each.host,
                each.zone,
                str(each.extents),
                readable_bytes(each.bytes),
                readable_bytes(each.free_bytes),
            ]
            for each in found.places
        ]
        lines += ["", table(["rebuilt on", "pool", "node", "host", "zone", "extents", "bytes", "free now"], rows)]
    if found.blocked:
        lines += ["", "not rebuilt, for example:"]
        lines += [f"  extent {each.extent}: {printable(each.why)}" for each in found.blocked[:_BLOCKED_SHOWN]]
    for state, head in (("unavailable", "could not be read:"), ("doubtful", "known only when read (doubtful):")):
        files = [each for each in report.files if each.state == state]
        if not files:
            continue
        lines += ["", head]
        lines += [
            f"  {printable(f'{each.namespace}/{each.path}')}  {each.size} bytes"
            + (", lost if it never came back" if each.lost else "")
            + (", already so" if each.before else "")
            for each in files
        ]
        counted = counts.unavailable_files if state == "unavailable" else counts.doubtful_files
        if len(files) < counted:
            lines.append("  ... and more")
    lines += [f"warning: {printable(each)}" for each in found.warnings]
    return "\n".join(lines)


def _passed(silent: list[str]) -> str:
    if not silent:
        return "PASSED"
    names = ", ".join(printable(each) for each in silent[:_SILENT_SHOWN])
    more = f" and {len(silent) - _SILENT_SHOWN} more" if len(silent) > _SILENT_SHOWN else ""
    return f"PASSED by the sessions that live now, {names}{more} {'is' if len(silent) == 1 else 'are'} silent"


def _sums(report: LossReport) -> list[str]:
    found, counts = report.forecast, report.counts
    pace = found.rate_from or "rate not known"
    if found.bytes_per_s:
        pace = f"{readable_bytes(int(found.bytes_per_s))}/s: {pace}"
    took = f"in {readable_age(found.eta_s)}" if found.eta_s is not None else "in an unknown time"
    rebuilt = f"{found.rebuild_extents} locations, {readable_bytes(found.rebuild_bytes)}, {took}"
    unavailable = f"{counts.unavailable_files} files, {readable_bytes(counts.unavailable_bytes)}"
    doubtful = f"{counts.doubtful_files} files, {readable_bytes(counts.doubtful_bytes)}"
    return [
        f"on it            {_sum(found.extents, found.bytes)}, on {', '.join(found.volumes) or '-'}",
        f"served by others {_sum(found.served_extents, found.served_bytes)}",
        f"unavailable      {unavailable}; {_sum(found.unavailable_extents, found.unavailable_bytes)}",
        f"                 of them already: {counts.before_files} files, {found.unavailable_before_extents} extents",
        f"lost for good    {counts.lost_files} files, {readable_bytes(counts.lost_bytes)}, if it never came back",
        f"doubtful         {doubtful}; {_sum(found.doubtful_extents, found.doubtful_bytes)}",
        f"under-protected  {_sum(found.under_protected_extents, found.under_protected_bytes)}",
        f"rebuilt          {rebuilt} ({pace})",
        f"                 of them too close to another copy: {found.crowded_extents}",
        f"not rebuilt      {_sum(found.blocked_extents, found.blocked_bytes)}",
    ]


def _sum(extents: int, size_bytes: int) -> str:
    return f"{extents} extents, {readable_bytes(size_bytes)}"
