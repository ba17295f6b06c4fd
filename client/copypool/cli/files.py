"""Commands on files: put, get, cat, ls, stat, rm."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from copypool.cli.options import Place, Verb, place_of, run, settings, show_json, show_json_line
from copypool.cli.output import printable, progress_bar, readable_bytes, readable_time, stat_text
from copypool.cli.stdin import stdin_pieces
from copypool.protocol.errors import BY_CODE, CopypoolError, Invalid, NotFound

if TYPE_CHECKING:
    from copypool.client import Client
    from copypool.results import BulkResult, FileVersion

_LONG_PAGE = 500


class Incomplete(CopypoolError):
    """Some of the files that a command was asked for were not transferred."""

    code = "incomplete"


@click.command(cls=Verb)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target", metavar="NAMESPACE/PATH")
@click.option("-r", "--recursive", is_flag=True, help="Accepted for habit: folders are stored whole anyway.")
@click.option("--if-absent", is_flag=True, help="Fail where a file exists already.")
@click.option("--if-version", type=int, default=0, metavar="VERSION", help="Replace only this version of a file.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="User metadata of a single file; may be repeated.")
@click.option("--digest", metavar="blake3:HEX", help="Refuse a single file unless its content has this digest.")
def put(
    sources: tuple[str, ...],
    target: str,
    recursive: bool,
    if_absent: bool,
    if_version: int,
    meta: tuple[str, ...],
    digest: str | None,
) -> None:
    """Store files. SOURCE is a file, a folder, or - for standard input.

    One file goes to PATH itself, or into it when PATH ends with a slash or is empty. What a single folder holds goes
    below PATH. Several sources go below PATH under their own names. Durable and visible when the command ends.
    """
    del recursive
    metadata = _metadata(meta)
    if len(sources) > 1 and (digest or if_version):
        raise click.UsageError("--digest and --if-version go with a single file")
    if if_absent and if_version:
        raise click.UsageError("--if-absent and --if-version contradict each other")

    folders = {source for source in sources if source != "-" and Path(source).is_dir()}
    if folders and (metadata or digest or if_version):
        raise click.UsageError("--meta, --digest and --if-version go with a single file")
    names = {source: Path(source).resolve().name for source in folders}

    async def work(client: Client) -> None:
        place = place_of(target, client.namespace)
        alone = len(sources) == 1
        for source in sources:
            if source in folders:
                prefix = place.path if alone else _join(place.path, names[source])
                await _put_folder(client, Path(source), Place(place.namespace, prefix), if_absent)
            else:
                path = _target_path(source, place.path, alone=alone)
                await _put_file(client, source, Place(place.namespace, path), if_absent, if_version, metadata, digest)

    run(work)


async def _put_folder(client: Client, folder: Path, place: Place, if_absent: bool) -> None:
    with progress_bar(str(folder), None, quiet=settings().json) as progress:
        result = await client.put_tree(
            folder, place.namespace, place.path, if_absent=if_absent, keep_going=True, progress=progress
        )
    _show_bulk(result, "stored", str(place))


async def _put_file(
    client: Client,
    source: str,
    place: Place,
    if_absent: bool,
    if_version: int,
    metadata: dict[str, str],
    digest: str | None,
) -> None:
    size_bytes = None if source == "-" else _local_size(source)
    with progress_bar(place.path, size_bytes, quiet=settings().json) as progress:
        stored: FileVersion = await client.put(
            place.namespace,
            place.path,
            stdin_pieces() if source == "-" else Path(source),
            if_absent=if_absent,
            if_version=if_version,
            metadata=metadata,
            digest=digest,
            progress=progress,
        )
    if settings().json:
        show_json(stored)
    else:
        click.echo(f"{printable(str(place))}: {stored.size} bytes, {stored.digest}, on {', '.join(stored.volumes)}")


@click.command(cls=Verb)
@click.argument("source", metavar="NAMESPACE/PATH")
@click.argument("destination", required=False, metavar="[DESTINATION]")
@click.option("-r", "--recursive", is_flag=True, help="Everything below PATH, into the folder DESTINATION.")
@click.option("--version", "version", type=int, default=0, help="This version instead of the current one.")
def get(source: str, destination: str | None, recursive: bool, version: int) -> None:
    """Fetch a file, or with -r a tree. DESTINATION is a file, an existing folder, or - for standard output.

    A file appears under its name complete, checked and fsync'd, or not at all.
    """
    into_folder = destination is None or destination.endswith("/") or Path(destination).is_dir()

    async def work(client: Client) -> None:
        place = place_of(source, client.namespace)
        name = place.path.rstrip("/").rpartition("/")[2] or place.namespace
        if recursive:
            if version:
                raise click.UsageError("--version goes with a single file")
            await _get_folder(client, place, Path(destination or name))
        elif destination == "-":
            await _to_stdout(client, place, version)
        else:
            await _get_file(client, place, _local(destination or "", name, into_folder), version)

    run(work)


async def _get_folder(client: Client, place: Place, folder: Path) -> None:
    with progress_bar(str(place), None, quiet=settings().json) as progress:
        result = await client.get_tree(place.namespace, place.path, folder, keep_going=True, progress=progress)
    if not result.files and not result.failures:
        raise NotFound(f"no file below {str(place)!r}")
    _show_bulk(result, "fetched", str(folder))


async def _get_file(client: Client, place: Place, local: Path, version: int) -> None:
    with progress_bar(place.path, None, quiet=settings().json) as progress:
        size_bytes = await client.download(place.namespace, place.path, local, version=version, progress=progress)
    if settings().json:
        show_json({"path": os.fspath(local), "size": size_bytes})
    else:
        click.echo(f"{local}: {size_bytes} bytes")


async def _to_stdout(client: Client, place: Place, version: int) -> None:
    from copypool.threads import in_thread

    out = sys.stdout.buffer
    async with await client.open(place.namespace, place.path, version=version) as reader:
        async for piece in reader:
            await in_thread(out.write, piece)
        await in_thread(out.flush)


@click.command(cls=Verb)
@click.argument("sources", nargs=-1, required=True, metavar="NAMESPACE/PATH...")
def cat(sources: tuple[str, ...]) -> None:
    """Write files to standard output."""

    async def work(client: Client) -> None:
        for source in sources:
            await _to_stdout(client, place_of(source, client.namespace), 0)

    run(work)


@click.command(cls=Verb)
@click.argument("target", required=False, metavar="[NAMESPACE/PREFIX]")
@click.option("-l", "long", is_flag=True, help="Size, time and digest as well.")
@click.option("-R", "recursive", is_flag=True, help="Every file below, not only the next level.")
def ls(target: str | None, long: bool, recursive: bool) -> None:
    """List names in byte order; without an argument the namespaces. With --json one object per line."""

    async def work(client: Client) -> None:
        if target is None and settings().namespace is None:
            for namespace in await client.namespaces():
                if settings().json:
                    show_json_line(namespace)
                else:
                    click.echo(f"{namespace.name}/")
            return
        place = place_of(target or "", client.namespace)
        below = place.path if not place.path or place.path.endswith("/") else place.path + "/"
        if await _list(client, Place(place.namespace, below), "" if recursive else "/", long):
            return
        if place.path and not place.path.endswith("/") and await _list(client, place, "/", long, only=place.path):
            return
        if place.path:
            raise NotFound(f"nothing is named {str(place)!r} or below it")

    run(work)


async def _list(client: Client, place: Place, delimiter: str, long: bool, only: str | None = None) -> bool:
    """Show a listing; whether there was anything. `only` limits it to the file of exactly this name."""
    from copypool.protocol.versions import time_ms_of

    rows: list[list[str]] = []
    found = False
    async for entry in client.list(place.namespace, place.path, delimiter=delimiter, page=1 if only else 1000):
        if only is not None and entry.path != only:
            break
        found = True
        if settings().json:
            show_json_line(entry)
        elif not long:
            click.echo(printable(entry.path))
        else:
            stored = "-" if entry.is_prefix else readable_time(time_ms_of(entry.version) / 1000)
            size = "-" if entry.is_prefix else str(entry.size)
            rows.append([size.rjust(12), stored.ljust(20), (entry.digest or "-").ljust(71), printable(entry.path)])
            if len(rows) == _LONG_PAGE:
                click.echo("\n".join("  ".join(row) for row in rows))
                rows.clear()
        if only is not None:
            break
    if rows:
        click.echo("\n".join("  ".join(row) for row in rows))
    return found


@click.command(cls=Verb)
@click.argument("target", metavar="NAMESPACE/PATH")
@click.option("--version", "version", type=int, default=0, help="This version instead of the current one.")
def stat(target: str, version: int) -> None:
    """Everything about one file, with every location of every segment and its state."""

    async def work(client: Client) -> None:
        place = place_of(target, client.namespace)
        found = await client.stat(place.namespace, place.path, version=version)
        if settings().json:
            show_json(found)
        else:
            click.echo(stat_text(found))

    run(work)


@click.command(cls=Verb)
@click.argument("targets", nargs=-1, required=True, metavar="NAMESPACE/PATH...")
@click.option("-r", "--recursive", is_flag=True, help="Everything below PATH/ (and the file PATH).")
def rm(targets: tuple[str, ...], recursive: bool) -> None:
    """Delete files; durably gone from every listing and read when the command ends."""

    async def work(client: Client) -> None:
        for target in targets:
            place = place_of(target, client.namespace)
            if not recursive:
                await client.delete(place.namespace, place.path)
                continue
            if not place.path and not target.endswith("/"):
                raise Invalid(f"this deletes the whole namespace: write {place.namespace}/ to mean that")
            result = await client.delete_tree(place.namespace, place.path, keep_going=True)
            bare = place.path.rstrip("/")
            if bare and bare == place.path:
                try:
                    await client.delete(place.namespace, bare)
                    result.files += 1
                except NotFound:
                    if not result.files and not result.failures:
                        raise
            _show_bulk(result, "deleted", str(place))

    run(work)


def _show_bulk(result: BulkResult, verb: str, where: str) -> None:
    """Sum up; anything that was not transferred is named and ends the command with an error."""
    failed = [
        {"path": failure.path, "code": failure.error.code, "message": failure.error.message}
        for failure in result.failed
    ]
    if settings().json:
        show_json({"files": result.files, "bytes": result.bytes, "failed": failed, "skipped": result.skipped})
    else:
        size = f", {readable_bytes(result.bytes)}" if result.bytes else ""
        click.echo(f"{printable(where)}: {result.files} files {verb}{size}")
        for failure in result.failed[:20]:
            click.echo(f"  not {verb}: {printable(failure.path)}: {failure.error.message}", err=True)
        for name in result.skipped[:20]:
            click.echo(f"  skipped, no regular file: {printable(name)}", err=True)
    if result.complete:
        return
    message = f"{result.failures} files failed, {len(result.skipped)} entries were skipped"
    if result.failed:
        first = result.failed[0].error
        error = BY_CODE[first.code](f"{message}; first: {result.failed[0].path!r}: {first.message}")
        raise error from first
    raise Incomplete(message)


def _metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.UsageError(f"--meta takes KEY=VALUE, not {pair!r}")
        metadata[key] = value
    return metadata


def _join(prefix: str, name: str) -> str:
    return f"{prefix.rstrip('/')}/{name}" if prefix else name


def _target_path(source: str, path: str, *, alone: bool) -> str:
    """Where one source file goes: PATH, or PATH/<its own name>."""
    if alone and path and not path.endswith("/"):
        return path
    if source == "-":
        raise Invalid("standard input has no name: name the file to store it as")
    return _join(path, Path(source).name)


def _local(destination: str, name: str, into_folder: bool) -> Path:
    return Path(destination, name) if into_folder else Path(destination)


def _local_size(source: str) -> int | None:
    try:
        found = os.stat(source)
    except OSError as exc:
        raise Invalid(f"cannot read {source!r}: {exc.strerror}") from exc
    return found.st_size or None
