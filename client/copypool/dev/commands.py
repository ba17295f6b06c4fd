"""`copypool dev`: the command line over `Supervisor`."""

from __future__ import annotations

import signal
from pathlib import Path

import click
import msgspec

from copypool.dev.layout import NAMESPACE, Sizes
from copypool.dev.supervisor import READY_TIMEOUT_S, STOP_TIMEOUT_S, ProcessStatus, Supervisor

DEFAULT_FOLDER = ".dev"

_folder = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="The folder of the cluster.",
)


def _supervisor(folder: Path) -> Supervisor:
    return Supervisor(folder, say=lambda line: click.echo(line, err=True))


@click.group()
def dev() -> None:
    """A whole cluster on this machine, as real processes in one folder: for trying out and for tests."""


@dev.command()
@_folder
@click.option("--etcd", type=int, help="etcd members [1].")
@click.option("--coordinators", type=int, help="Coordinators [2].")
@click.option("--primary-nodes", type=int, help="Nodes with a primary volume [2].")
@click.option("--copy-nodes", type=int, help="Nodes with a copy volume [2].")
@click.option("--tls", is_flag=True, default=None, help="TLS on every link, by an authority of the cluster's own.")
@click.option("--timeout", "timeout_s", type=float, default=READY_TIMEOUT_S, show_default=True, help="Seconds.")
def up(folder: Path, timeout_s: float, tls: bool | None, **given: int | None) -> None:
    """Make the cluster if there is none, start what does not run, wait until all of it serves."""
    supervisor = _supervisor(folder)
    sizes = supervisor.load().sizes if supervisor.exists else Sizes()
    wanted = {name: number for name, number in given.items() if number is not None}
    cluster = supervisor.up(msgspec.structs.replace(sizes, **wanted), timeout_s=timeout_s, tls=tls)
    click.echo(f"{len(cluster.processes)} processes are ready; logs in {supervisor.layout.logs}")
    click.echo(f"HTTP clients reach every coordinator at {cluster.shared_url}")
    profile = "" if folder == Path(DEFAULT_FOLDER) else f" --profile {folder / supervisor.layout.profile_file.name}"
    click.echo("Next:")
    click.echo(f"  copypool{profile} put README.md {NAMESPACE}/README.md")
    click.echo(f"  copypool{profile} stat {NAMESPACE}/README.md")
    click.echo(f"  copypool{profile} status")


@dev.command()
@_folder
def renew_certificates(folder: Path) -> None:
    """New keys and certificates for a cluster with TLS, while it runs."""
    _supervisor(folder).renew_certificates()


@dev.command()
@_folder
@click.option("--wipe", is_flag=True, help="Remove the folder as well: everything stored in it is gone.")
@click.option("--timeout", "timeout_s", type=float, default=STOP_TIMEOUT_S, show_default=True, help="Then SIGKILL.")
def down(folder: Path, wipe: bool, timeout_s: float) -> None:
    """End every process of the cluster; its data stays unless --wipe is given."""
    _supervisor(folder).down(wipe, timeout_s)


@dev.command()
@_folder
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def status(context: click.Context, folder: Path, as_json: bool) -> None:
    """Show every process. Exit code 3 when one is not ready."""
    supervisor = _supervisor(folder)
    found, shared_url = supervisor.status(), supervisor.load().shared_url
    answer = {"processes": found, "shared_url": shared_url}
    click.echo(msgspec.json.encode(answer).decode() if as_json else f"{_table(found)}\nHTTP clients: {shared_url}")
    if any(process.state != "ready" for process in found):
        context.exit(3)


def _table(found: list[ProcessStatus]) -> str:
    lines = [f"{'name':<14}{'state':<9}{'pid':>8}  {'url':<24}{'zone':<8}{'pool':<9}"]
    for process in found:
        pid = str(process.pid) if process.pid else "-"
        line = f"{process.name:<14}{process.state:<9}{pid:>8}  {process.url:<24}{process.zone:<8}{process.pool:<9}"
        lines.append(f"{line}{process.reason}".rstrip())
    return "\n".join(lines)


@dev.command()
@click.argument("name")
@_folder
def start(name: str, folder: Path) -> None:
    """Start one process that is down, and wait until it is ready."""
    _supervisor(folder).start(name)


@dev.command()
@click.argument("name")
@_folder
@click.option(
    "--signal",
    "signal_name",
    type=click.Choice(["KILL", "TERM", "INT", "STOP", "CONT", "HUP"]),
    default="KILL",
    show_default=True,
)
@click.pass_context
def kill(context: click.Context, name: str, folder: Path, signal_name: str) -> None:
    """Send a signal to one process: kill -9 unless told otherwise."""
    _told(context, name, _supervisor(folder).kill(name, signal.Signals[f"SIG{signal_name}"]))


@dev.command()
@click.argument("name")
@_folder
@click.pass_context
def stop(context: click.Context, name: str, folder: Path) -> None:
    """Freeze one process (SIGSTOP): it keeps its connections and answers nothing."""
    _told(context, name, _supervisor(folder).stop(name))


@dev.command()
@click.argument("name")
@_folder
@click.pass_context
def cont(context: click.Context, name: str, folder: Path) -> None:
    """Let a frozen process go on (SIGCONT)."""
    _told(context, name, _supervisor(folder).cont(name))


def _told(context: click.Context, name: str, sent: bool) -> None:
    if not sent:
        click.echo(f"{name} is down: nothing was sent", err=True)
        context.exit(1)


@dev.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=".demo",
    show_default=True,
    help="A folder that the demo may fill; it is empty or gone afterwards.",
)
@click.pass_context
def demo(context: click.Context, folder: Path) -> None:
    """Play the main job and end with figures. Exit code 1 when a read failed or one byte differed."""
    from copypool.dev.demo import Demo  # brings the whole SDK: only when asked for

    if not Demo(folder, click.echo).run():
        context.exit(1)
