"""Commands for administrators: namespaces and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from copypool.cli.options import Verbs, run, settings, show_json
from copypool.cli.output import table

if TYPE_CHECKING:
    from copypool.client import Client, Role
    from copypool.protocol.api import AckRule


@click.group(cls=Verbs)
def namespace() -> None:
    """Namespaces: trees of files and where their bytes go."""


@namespace.command("create")
@click.argument("name")
@click.option("--primary-pool", default="primary", show_default=True)
@click.option("--copy-pool", "copy_pools", multiple=True, default=("copy",), show_default=True, help="May be repeated.")
@click.option(
    "--ack",
    type=click.Choice(["primary", "copy"]),
    default="primary",
    show_default=True,
    help="When a write is acknowledged: durable in the primary pool, or in a copy pool as well.",
)
def namespace_create(name: str, primary_pool: str, copy_pools: tuple[str, ...], ack: AckRule) -> None:
    """Make a namespace."""

    async def work(client: Client) -> None:
        made = await client.namespace_create(name, primary_pool=primary_pool, copy_pools=copy_pools, ack=ack)
        if settings().json:
            show_json(made)
        else:
            click.echo(f"{made.name}: id {made.id}, {made.primary_pool} -> {', '.join(made.copy_pools) or 'no copies'}")

    run(work)


@namespace.command("list")
def namespace_list() -> None:
    """The namespaces that the token may see."""

    async def work(client: Client) -> None:
        items = await client.namespaces()
        if settings().json:
            show_json({"items": items})
        else:
            rows = [[i.name, str(i.id), i.primary_pool, ", ".join(i.copy_pools) or "-", i.ack] for i in items]
            click.echo(table(["namespace", "id", "primary pool", "copy pools", "ack"], rows))

    run(work)


@click.group(cls=Verbs)
def token() -> None:
    """Tokens: who may do what, and where."""


@token.command("create")
@click.argument("name")
@click.option("--role", type=click.Choice(["reader", "writer", "operator", "admin"]), required=True)
@click.option("--in", "scope", default="", metavar="NAMESPACE[/PREFIX]", help="Limit it to these names.")
@click.option("--life", "life_s", type=click.IntRange(min=0), default=0, help="Seconds; 0: for ever.")
def token_create(name: str, role: Role, scope: str, life_s: int) -> None:
    """Make a token and print it, this once."""

    async def work(client: Client) -> None:
        within, _, prefix = scope.partition("/")
        made = await client.token_create(name, role, namespace=within, prefix=prefix, life_s=life_s)
        if settings().json:
            show_json(made)
        else:
            click.echo(made.token)

    run(work)


@token.command("revoke")
@click.argument("name")
def token_revoke(name: str) -> None:
    """End a token. What it was allowed at nodes ends by itself within 300 s."""

    async def work(client: Client) -> None:
        await client.token_revoke(name)
        if settings().json:
            show_json({"name": name})
        else:
            click.echo(f"{name}: revoked")

    run(work)
