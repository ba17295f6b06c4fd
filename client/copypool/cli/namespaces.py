"""Commands about namespaces: where their bytes go, how much they may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from copypool.cli.options import Verbs, run, settings, show_json
from copypool.cli.output import readable_bytes, readable_time, table
from copypool.cli.processes import rewrite
from copypool.cli.quantities import Size

if TYPE_CHECKING:
    from copypool.client import Client
    from copypool.protocol.api import AckRule, OnCopyFailure
    from copypool.protocol.policies import NamespaceDetails

_ACK = click.option(
    "--ack",
    type=click.Choice(["primary", "copy"]),
    help="When a write is acknowledged: durable in the primary pool, or in a copy pool as well.",
)
_ON_COPY_FAILURE = click.option(
    "--on-copy-failure",
    type=click.Choice(["continue", "fail"]),
    help="With --ack copy, when no copy can be written: acknowledge with a debt, or refuse.",
)
_QUOTA = click.option("--quota", "quota_bytes", type=Size(), help="Sizes of its files together; 0: none. Soft.")
_COPY_POOL = click.option("--copy-pool", "copy_pools", multiple=True, help="May be repeated.")
_NO_COPIES = click.option("--no-copies", is_flag=True, help="In no copy pool at all.")


@click.group(cls=Verbs)
def namespace() -> None:
    """Namespaces: trees of files and where their bytes go."""


def _pools(copy_pools: tuple[str, ...], no_copies: bool) -> tuple[str, ...] | None:
    if no_copies and copy_pools:
        raise click.UsageError("--no-copies and --copy-pool exclude each other")
    return copy_pools if copy_pools or no_copies else None


@namespace.command("create")
@click.argument("name")
@click.option("--primary-pool", default="primary", show_default=True)
@_COPY_POOL
@_NO_COPIES
@_ACK
@_ON_COPY_FAILURE
@_QUOTA
def namespace_create(
    name: str,
    primary_pool: str,
    copy_pools: tuple[str, ...],
    no_copies: bool,
    ack: AckRule | None,
    on_copy_failure: OnCopyFailure | None,
    quota_bytes: int | None,
) -> None:
    """Make a namespace. Without --copy-pool its bytes are copied where its primary pool says."""
    if on_copy_failure is not None and ack != "copy":
        raise click.UsageError("--on-copy-failure goes with --ack copy: without it no write waits for a copy")
    pools = _pools(copy_pools, no_copies)

    async def work(client: Client) -> None:
        made = await client.namespace_create(
            name,
            primary_pool=primary_pool,
            copy_pools=pools,
            ack=ack or "primary",
            on_copy_failure=on_copy_failure or "continue",
            quota_bytes=quota_bytes or 0,
        )
        if settings().json:
            show_json(made)
        else:
            click.echo(f"{made.name}: id {made.id}, {made.primary_pool} -> {', '.join(made.copy_pools) or 'no copies'}")

    run(work)


@namespace.command("update")
@click.argument("name")
@click.option("--primary-pool")
@_COPY_POOL
@_NO_COPIES
@_ACK
@_ON_COPY_FAILURE
@_QUOTA
def namespace_update(
    name: str,
    primary_pool: str | None,
    copy_pools: tuple[str, ...],
    no_copies: bool,
    ack: AckRule | None,
    on_copy_failure: OnCopyFailure | None,
    quota_bytes: int | None,
) -> None:
    """Change the policy of what is stored from now on; `namespace rewrite` brings older extents to it."""
    pools = _pools(copy_pools, no_copies)

    async def work(client: Client) -> None:
        details = await client.policies.namespace_update(
            name,
            primary_pool=primary_pool,
            copy_pools=pools,
            ack=ack,
            on_copy_failure=on_copy_failure,
            quota_bytes=quota_bytes,
        )
        _show(details)

    run(work)


@namespace.command("show")
@click.argument("name")
def namespace_show(name: str) -> None:
    """The policy of a namespace, what it holds, and what older policies have left."""

    async def work(client: Client) -> None:
        _show(await client.policies.namespace(name))

    run(work)


namespace.add_command(rewrite)


@namespace.command("list")
def namespace_list() -> None:
    """The namespaces that the token may see."""

    async def work(client: Client) -> None:
        items = await client.namespaces()
        if settings().json:
            show_json({"items": items})
        else:
            rows = [
                [
                    i.name,
                    str(i.id),
                    i.primary_pool,
                    ", ".join(i.copy_pools) or "-",
                    i.ack if i.on_copy_failure == "continue" else f"{i.ack} or {i.on_copy_failure}",
                    readable_bytes(i.quota_bytes) if i.quota_bytes else "-",
                ]
                for i in items
            ]
            click.echo(table(["namespace", "id", "primary pool", "copy pools", "ack", "quota"], rows))

    run(work)


def _show(details: NamespaceDetails) -> None:
    if settings().json:
        show_json(details)
    else:
        click.echo(namespace_text(details))


def namespace_text(details: NamespaceDetails) -> str:
    """One namespace for reading."""
    info = details.info
    ack = info.ack if info.ack == "primary" else f"{info.ack}, else {info.on_copy_failure}"
    quota = f" of {readable_bytes(info.quota_bytes)}" if info.quota_bytes else ""
    stored = f"{details.files} files, {readable_bytes(details.bytes)}{quota}"
    lines = [
        f"namespace     {info.name} (id {info.id})",
        f"primary pool  {info.primary_pool}",
        f"copy pools    {', '.join(info.copy_pools) or 'none'}",
        f"ack rule      {ack}",
        f"stored        {stored} (as of {readable_time(details.as_of_unix_s or None)})",
    ]
    if details.older_extents:
        doing = ", being changed now" if details.rewriting else ""
        older = f"{details.older_extents} extents, {readable_bytes(details.older_bytes)}"
        lines.append(f"older policy  {older}{doing}")
    if details.obstacle:
        lines.append(f"              {details.obstacle}")
    if details.lacking_extents:
        lacking = f"{details.lacking_extents} extents, {readable_bytes(details.lacking_bytes)}"
        lines.append(f"not yet       {lacking}, where the policy wants them: see `copypool status`")
    return "\n".join(lines)
