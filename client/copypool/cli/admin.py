"""Commands for administrators: tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from copypool.cli.options import Verbs, run, settings, show_json

if TYPE_CHECKING:
    from copypool.client import Client, Role


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
