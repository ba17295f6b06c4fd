"""Sizes and durations as people write them on the command line: `50MiB`, `30m`."""

from __future__ import annotations

import re
from typing import Any

import click

_SIZES = {"": 1, "B": 1} | {f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", 1)}
_SIZES |= {f"{letter}B": 1000**power for power, letter in enumerate("kMGTP", 1)}
_DURATIONS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_QUANTITY = re.compile(r"(\d+)\s*([A-Za-z]*)")


class _Quantity(click.ParamType[int]):
    """A whole number and a unit."""

    units: dict[str, int]
    example: str

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _QUANTITY.fullmatch(str(value).strip())
        if found is None or found[2] not in self.units:
            known = ", ".join(unit for unit in self.units if unit)
            self.fail(f"{value!r} is not {self.example}; units: {known}", param, ctx)
        return int(found[1]) * self.units[found[2]]


class Size(_Quantity):
    """Bytes."""

    name = "size"
    units = _SIZES
    example = "a size such as 50MiB"


class Duration(_Quantity):
    """Seconds."""

    name = "duration"
    units = _DURATIONS
    example = "a duration such as 30m"
