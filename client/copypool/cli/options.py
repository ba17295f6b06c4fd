"""Options that every command takes, before or after its name, and how a command runs the client."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from copypool.protocol.errors import Invalid

if TYPE_CHECKING:
    from copypool.client import Client

T = TypeVar("T")


@dataclass
class Settings:
    """What the global options say."""

    json: bool = False
    profile: str | None = None
    namespace: str | None = None


def settings() -> Settings:
    """The settings of the running command."""
    found = click.get_current_context().find_object(Settings)
    return found if found is not None else Settings()


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is None or value is False:
        return
    assert parameter.name is not None
    current = context.find_object(Settings) or Settings()
    context.obj = replace(current, **{parameter.name.removeprefix("global_"): value})


def global_options() -> list[click.Option]:
    """Fresh `--json`, `--profile` and `--namespace`."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _keep}
    return [
        click.Option(["--json", "global_json"], is_flag=True, help="Answers and errors as JSON.", **shared),
        click.Option(
            ["--profile", "global_profile"], metavar="FILE", help="Cluster and token; see `copypool --help`.", **shared
        ),
        click.Option(
            ["--namespace", "global_namespace"],
            metavar="NAME",
            help="Arguments name files of this namespace: PATH instead of NAMESPACE/PATH.",
            **shared,
        ),
    ]


class Verb(click.Command):
    """A command that also takes the global options."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.extend(global_options())


class Verbs(click.Group):
    """A group whose commands, and itself, take the global options."""

    command_class = Verb
    group_class = type

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.extend(global_options())


class Place(NamedTuple):
    """A file or folder of the store as named on the command line."""

    namespace: str
    path: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.path}"


def place_of(text: str, profile_namespace: str) -> Place:
    """`NAMESPACE/PATH`; `PATH` with --namespace; `:PATH` for the profile's namespace."""
    given = settings().namespace
    if given is not None:
        return Place(given, text)
    if text.startswith(":"):
        if not profile_namespace:
            raise Invalid("the profile names no namespace: write NAMESPACE/PATH")
        return Place(profile_namespace, text[1:])
    namespace, _, path = text.partition("/")
    return Place(namespace, path)


def run(work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a client of the chosen profile."""
    import uvloop

    from copypool.client import Client

    async def connected() -> T:
        async with await Client.connect(settings().profile) as client:
            return await work(client)

    return uvloop.run(connected())


def confirm(question: str) -> None:
    """Ask whether to go on; `Invalid` when nobody is there to be asked."""
    if not sys.stdin.isatty():
        raise Invalid("nobody is there to be asked: add --yes")
    click.confirm(question, abort=True, err=True)


def show_json(value: object) -> None:
    """A value as indented JSON on standard output."""
    import msgspec

    click.echo(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))


def show_json_line(value: object) -> None:
    """A value as one line of JSON on standard output."""
    import msgspec

    click.echo(json.dumps(msgspec.to_builtins(value), ensure_ascii=False))
