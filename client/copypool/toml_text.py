"""TOML text of plain data. Pure; Python itself only reads TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Value: TypeAlias = "str | bool | int | float | Sequence[Value] | Mapping[str, Value]"


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return json.dumps(value)  # a JSON string is a TOML basic string
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_literal(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(_literal(item) for item in value) + "]"


def to_toml(settings: Mapping[str, Value]) -> str:
    """TOML of plain data whose keys are bare; tables are written inline."""
    return "".join(f"{key} = {_literal(value)}\n" for key, value in settings.items())
