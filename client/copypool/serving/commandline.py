"""The command line of a server: where its settings are, what overrides them, and looking at them without starting.

Exit code 2 for settings that cannot be used, with one line on stderr for each thing that is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from copypool.serving.settings import ConfigError
from copypool.toml_text import to_toml

C = TypeVar("C", bound=msgspec.Struct)

EXIT_CONFIG = 2


def settings_of(
    program: str,
    description: str,
    arguments: Sequence[str] | None,
    load: Callable[[Path, Mapping[str, str], Sequence[str]], C],
    find_troubles: Callable[[C], list[str]],
) -> C:
    """The settings to start with. Blocking.

    Ends the process where there is nothing to start: 0 after `--print-config`, and after `--check-config` when all is
    well; 2 when the settings, or for `--check-config` the files that they name, cannot be used.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings (TOML); see CONFIG.md")
    parser.add_argument(
        "--set",
        dest="flags",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override one setting (section.field), over file and environment; may be repeated",
    )
    look = parser.add_mutually_exclusive_group()
    look.add_argument(
        "--check-config",
        action="store_true",
        help="check settings, secrets and certificates, then exit (2: not usable)",
    )
    look.add_argument("--print-config", action="store_true", help="show the settings in force as TOML, then exit")
    options = parser.parse_args(arguments)
    try:
        config = load(options.config, os.environ, options.flags)
    except ConfigError as error:
        refuse(program, [str(error)])
    if options.check_config:
        if found := find_troubles(config):
            refuse(program, found)
        sys.exit(0)
    if options.print_config:
        sys.stdout.write(to_toml(_without_unset(msgspec.to_builtins(config))))
        sys.exit(0)
    return config


def refuse(program: str, troubles: Sequence[str]) -> NoReturn:
    """End the process because of its settings."""
    for trouble in troubles:
        sys.stderr.write(f"{program}: {trouble}\n")
    sys.exit(EXIT_CONFIG)


def _without_unset(value: Any) -> Any:
    """TOML has no word for "not set"."""
    if isinstance(value, dict):
        return {key: _without_unset(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_unset(item) for item in value]
    return value
