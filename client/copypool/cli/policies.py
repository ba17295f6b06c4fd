"""Commands that set what the cluster works towards: pools, volumes, maintenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from copypool.cli import cluster
from copypool.cli.options import Verbs, confirm, run, settings, show_json
from copypool.cli.output import printable, readable_bytes, readable_time
from copypool.cli.quantities import Duration, Size

if TYPE_CHECKING:
    from copypool.client import Client
    from copypool.protocol.api import AccessMode, PoolType
    from copypool.protocol.policies import MaintenanceReply, PoolDetails, Spread, VolumeDetails

_COPY_POOL = click.option(
    "--copy-pool", "copy_pools", multiple=True, help="Of namespaces that name none themselves; may be repeated."
)
_SPREAD = click.option(
    "--spread",
    type=click.Choice(["host", "zone"]),
    help="What an extent's locations in different pools must not share.",
)
_WINDOW = click.option("--window", metavar="CRON", help="When copying may begin, in UTC; 'always' for no window.")
_LENGTH = click.option("--window-for", "window_s", type=Duration(), help="How long a window is open.")
_BUDGET = click.option("--budget", "budget_bytes_s", type=Size(), help="Bytes a second into this pool; 0: no limit.")
_DESCRIPTION = click.option("--description")
_ACCESS = click.Choice(["readwrite", "readonly", "unavailable", "destroyed", "offsite"])
_LOCATION = click.option("--location", "location_text", help="Where it is, for people.")
_LIMIT = click.option("--limit", "limit_bytes", type=Size(), help="Room that its extents may take; 0: no limit.")


# -- pools ------------------------------------------------------------------------------------
@click.group(cls=Verbs)
def pool() -> None:
    """Storage pools: sets of volumes that files are written to (primary) or copied to (copy)."""


@pool.command("create")
@click.argument("name")
@click.option("--type", "pool_type", type=click.Choice(["primary", "copy"]), required=True)
@_COPY_POOL
@_SPREAD
@_WINDOW
@_LENGTH
@_BUDGET
@_DESCRIPTION
def pool_create(
    name: str,
    pool_type: PoolType,
    copy_pools: tuple[str, ...],
    spread: Spread | None,
    window: str | None,
    window_s: int | None,
    budget_bytes_s: int | None,
    description: str | None,
) -> None:
    """Make a pool. Nodes bring volumes into it by their configuration."""

    async def work(client: Client) -> None:
        details = await client.policies.pool_create(
            name,
            pool_type,
            copy_pools=copy_pools,
            spread=spread or "host",
            window=_cron(window) or "",
            window_s=window_s or 0,
            budget_bytes_s=budget_bytes_s or 0,
            description=description or "",
        )
        _show_pool(details)

    run(work)


@pool.command("update")
@click.argument("name")
@_COPY_POOL
@_SPREAD
@_WINDOW
@_LENGTH
@_BUDGET
@_DESCRIPTION
def pool_update(
    name: str,
    copy_pools: tuple[str, ...],
    spread: Spread | None,
    window: str | None,
    window_s: int | None,
    budget_bytes_s: int | None,
    description: str | None,
) -> None:
    """Change a pool. Windows and budgets hold within seconds; copy pools are those of namespaces made later."""

    async def work(client: Client) -> None:
        details = await client.policies.pool_update(
            name,
            copy_pools=copy_pools or None,
            spread=spread,
            window=_cron(window),
            window_s=window_s,
            budget_bytes_s=budget_bytes_s,
            description=description,
        )
        _show_pool(details)

    run(work)


@pool.command("show")
@click.argument("name")
def pool_show(name: str) -> None:
    """One pool: its settings, what it holds, who uses it."""

    async def work(client: Client) -> None:
        _show_pool(await client.policies.pool(name))

    run(work)


pool.add_command(cluster.pools, "list")


def _cron(window: str | None) -> str | None:
    return "" if window == "always" else window


def _show_pool(details: PoolDetails) -> None:
    if settings().json:
        show_json(details)
        return
    info = details.info
    window = "always open"
    if details.window:
        changes = f"{'closes' if details.window_open else 'opens'} {readable_time(details.window_changes_unix_s)}"
        window = (
            f"{details.window!r} for {details.window_s} s: {'open' if details.window_open else 'closed'}, {changes}"
        )
    lines = [
        f"pool         {info.name} ({info.type}, id {info.id})",
        f"holds        {info.extents} extents, {readable_bytes(info.stored_bytes)} on {info.volumes} volumes",
        f"spread over  {details.spread}s",
        f"budget       {readable_bytes(details.budget_bytes_s) + '/s' if details.budget_bytes_s else 'no limit'}",
        f"namespaces   {', '.join(details.namespaces) or 'none'}",
        f"volumes      {', '.join(details.volumes) or 'none'}",
    ]
    if info.type == "copy":
        lines.insert(2, f"debt         {readable_bytes(info.debt_bytes)}")
        lines.insert(3, f"window       {window}")
    else:
        lines.insert(2, f"copy pools   {', '.join(details.copy_pools) or 'none'} (of new namespaces)")
    if details.description:
        lines.append(f"description  {printable(details.description)}")
    click.echo("\n".join(lines))


# -- volumes ----------------------------------------------------------------------------------
@click.group(cls=Verbs)
def volume() -> None:
    """Volumes: labelled folders of extents, each on one node and in one pool."""


@volume.command("define")
@click.argument("name")
@click.option("--pool", "pool_name", required=True)
@click.option("--node", default="", help="Only this node may mount it first.")
@click.option("--access", type=_ACCESS, default="readwrite", show_default=True)
@_LOCATION
@_LIMIT
def volume_define(
    name: str, pool_name: str, node: str, access: AccessMode, location_text: str | None, limit_bytes: int | None
) -> None:
    """Announce a volume before its node mounts it, so that it starts with the right settings."""

    async def work(client: Client) -> None:
        details = await client.policies.volume_define(
            name,
            pool_name,
            node=node,
            access=access,
            location_text=location_text or "",
            limit_bytes=limit_bytes or 0,
        )
        _show_volume(details)

    run(work)


@volume.command("update")
@click.argument("name")
@click.option("--access", type=_ACCESS, help="What may be done with it; see README, For operators.")
@_LOCATION
@_LIMIT
def volume_update(name: str, access: AccessMode | None, location_text: str | None, limit_bytes: int | None) -> None:
    """Change a volume. No access mode erases anything, and every one can be taken back."""

    async def work(client: Client) -> None:
        details = await client.policies.volume_update(
            name, access=access, location_text=location_text, limit_bytes=limit_bytes
        )
        _show_volume(details)

    run(work)


@volume.command("show")
@click.argument("name")
def volume_show(name: str) -> None:
    """One volume: its settings, what it holds, and when that was verified."""

    async def work(client: Client) -> None:
        _show_volume(await client.policies.volume(name))

    run(work)


volume.add_command(cluster.volumes, "list")


def _show_volume(details: VolumeDetails) -> None:
    if settings().json:
        show_json(details)
        return
    info = details.info
    why = f": {printable(details.access_reason)}" if details.access_reason else ""
    since = f" since {readable_time(details.access_since_unix_s)}" if details.access_since_unix_s else ""
    reachable = "reachable" if info.reachable else ("not reachable" if details.mounted else "not mounted yet")
    states = ", ".join(f"{count} {state}" for state, count in sorted(details.locations.items())) or "none"
    oldest = readable_time(details.verified_oldest_unix_s)
    where = f"on {info.node}" if info.node else "on no node yet"
    lines = [
        f"volume      {info.name} (id {info.id}) {where}, pool {info.pool} ({info.pool_type})",
        f"access      {info.access}{since}{why}",
        f"state       {reachable}, {readable_bytes(info.free_bytes)} free of {readable_bytes(info.total_bytes)}",
        f"limit       {readable_bytes(details.limit_bytes) if details.limit_bytes else 'none'}",
        f"locations   {states}",
        f"verified    {details.unverified} never, the oldest of the others {oldest}",
        f"only here   {details.only_here} extents have no other good location",
    ]
    if details.location_text:
        lines.append(f"location    {printable(details.location_text)}")
    click.echo("\n".join(lines))


# -- maintenance ------------------------------------------------------------------------------
@click.group(cls=Verbs)
def maintenance() -> None:
    """Announced absences of nodes. Each ends by itself."""


@maintenance.command("node")
@click.argument("name")
@click.option("--for", "for_s", type=Duration(), required=True, metavar="DURATION", help="For example 30m; 7d at most.")
def maintenance_node(name: str, for_s: int) -> None:
    """A node will be away: what it holds is not made again elsewhere meanwhile, and reads go to the copies.

    New bytes are copied elsewhere all the same. The grace time begins when the maintenance ends.
    """
    if for_s < 1:
        raise click.UsageError("--for is at least 1s; `maintenance end` ends it")

    async def work(client: Client) -> None:
        _show_maintenance(await client.policies.maintenance(name, for_s))

    run(work)


@maintenance.command("end")
@click.argument("name")
def maintenance_end(name: str) -> None:
    """End a node's maintenance before its time."""

    async def work(client: Client) -> None:
        _show_maintenance(await client.policies.maintenance(name, 0))

    run(work)


def _show_maintenance(reply: MaintenanceReply) -> None:
    if settings().json:
        show_json(reply)
    elif reply.until_unix_s is None:
        click.echo(f"{reply.node}: no maintenance")
    else:
        click.echo(f"{reply.node}: maintenance until {readable_time(reply.until_unix_s)}")


# -- the brake --------------------------------------------------------------------------------
@click.group(cls=Verbs)
def release() -> None:
    """Say that something which is held back may go on."""


@release.command("brake")
@click.option("--yes", is_flag=True, help="Do not ask.")
def release_brake(yes: bool) -> None:
    """Many nodes were lost at once, and will not be back: rebuild elsewhere what they hold.

    The brake holds that up because it would move very much for an outage that may be short. Releasing it is about
    the nodes that are away now; each is replaced once its grace time is over. Role admin.
    """
    if not yes:
        held = run(lambda client: client.status()).brake
        if held:
            click.echo(held, err=True)
            confirm("Is what these nodes hold to be rebuilt elsewhere?")

    async def work(client: Client) -> None:
        held = await client.policies.release_brake()
        if settings().json:
            show_json({"brake": held})
        else:
            click.echo(f"released: {printable(held)}")

    run(work)
