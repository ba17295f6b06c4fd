"""`copypool`: the commands put together, and how their errors end the process.

Exit codes: 0 done; 1 anything else; 2 usage or refused input; 3 `status`: not healthy, or a process that could not do
all that it was asked for, or an audit that found something, or a drill that did not pass; 4 not allowed; 5 not found;
6 conflict; 7 try again later; 8 nobody knows whether it was applied; 9 bytes are wrong or gone; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from copypool.cli import admin, cluster, drills, files, insight, namespaces, policies, processes
from copypool.cli.options import Verb, Verbs, settings, show_json
from copypool.protocol.errors import CopypoolError, Invalid
from copypool.telemetry import tracing

INTERRUPTED = 130
BROKEN_PIPE = 141


class _Commands(Verbs):
    """Loads `copypool dev` only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "dev"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "dev":
            from copypool.dev.commands import dev

            return dev
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands)
def cli() -> None:
    """Copypool: a distributed file store whose reads survive the loss of any node.

    Files are named NAMESPACE/PATH; with --namespace, PATH alone; with a namespace in the profile, :PATH.

    The cluster and the token come from a profile: --profile, else $COPYPOOL_PROFILE, else
    ~/.config/copypool/profile.toml, else .dev/profile.toml in the current folder, which `copypool dev up` writes.

    Exit codes: 2 usage or refused input, 3 status: not healthy, or a process did not do all, 4 not allowed, 5 not
    found, 6 conflict, 7 try again later, 8 nobody knows whether it was applied, 9 bytes are wrong or gone, 130
    interrupted.
    """


@cli.command(cls=Verb)
def version() -> None:
    """The version of this program."""
    from importlib.metadata import version as installed_version

    found = installed_version("copypool")
    if settings().json:
        show_json({"version": found})
    else:
        click.echo(found)


@cli.group(cls=Verbs)
def query() -> None:
    """The cluster's lists, by the names that operators of storage pools know."""


_FILES: list[click.Command] = [files.put, files.get, files.cat, files.ls, files.stat, files.rm]
_LISTS: list[click.Command] = [cluster.nodes, cluster.volumes, cluster.pools, cluster.damaged, insight.events]
for _command in [*_FILES, *_LISTS, cluster.status, cluster.wait, namespaces.namespace, admin.token]:
    cli.add_command(_command)
_JOBS: list[click.Command] = [
    processes.restore,
    processes.audit,
    processes.move,
    processes.drain,
    processes.rebalance,
    processes.delete,
    processes.backup,
    processes.process,
]
for _command in [policies.pool, policies.volume, policies.maintenance, policies.release, *_JOBS]:
    cli.add_command(_command)
for _command in [insight.prove, insight.explain, drills.drill]:
    cli.add_command(_command)
for _command in [*_LISTS, insight.occupancy, insight.content]:
    query.add_command(_command)
query.add_command(insight.events, "log")
query.add_command(processes.process_list, "process")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    trace = tracing.Trace()
    try:
        # As other tools do it: who calls us within a trace says so in the environment.
        with tracing.continuing(os.environ.get("TRACEPARENT", "")) as trace:
            code = cli.main(given, prog_name="copypool", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.Abort:
        code = INTERRUPTED
    except click.ClickException as exc:
        code = exc.exit_code
        if as_json:
            _show_error("usage", exc.format_message(), False)
        else:
            exc.show()
    except CopypoolError as exc:
        code = exc.exit_code
        if as_json:
            _show_error(exc.code, exc.message, exc.retryable, trace.trace_id)
        else:
            click.echo(f"copypool: {exc.message}", err=True)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    except (FileNotFoundError, PermissionError, NotADirectoryError, FileExistsError) as exc:
        # What a command about local folders met there; the SDK's own errors never come as these.
        code = Invalid.exit_code
        where = f"{exc.filename}: " if exc.filename else ""
        if as_json:
            _show_error(Invalid.code, f"{where}{exc.strerror}", False)
        else:
            click.echo(f"copypool: {where}{exc.strerror}", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _show_error(code: str, message: str, retryable: bool, trace_id: str = "") -> None:
    """`trace_id` is what the servers' logs know the command by; "" where nothing was sent."""
    fields = {"code": code, "message": message, "retryable": retryable}
    if trace_id:
        fields["trace_id"] = trace_id
    click.echo(json.dumps(fields, ensure_ascii=False), err=True)


if __name__ == "__main__":
    main()
