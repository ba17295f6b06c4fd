"""What releases say to each other and keep: the fields of every struct on the wire and in rows, as plain data.

`PYTHONPATH=tests python -m kit.structs > tests/unit/recorded_structs.json` records them, once for every release.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys

import msgspec

MODULES = [
    *("copypool.protocol.api", "copypool.protocol.insight", "copypool.protocol.internal"),
    *("copypool.protocol.policies", "copypool.protocol.processes", "copypool.protocol.drills"),
    *("copypool.protocol.twins", "copypool.protocol.capability"),
    *("copypool_coordinator.rows", "copypool_node.identity", "copypool_node.label", "copypool_node.format"),
]
ARRAY, MAP = "array", "map"
OPTIONAL = "="  #: at the end of the name of a field that may be missing


def described(struct: type[msgspec.Struct]) -> list[str]:
    """How a struct is encoded, and its fields in order."""
    fields = [field.name + ("" if field.required else OPTIONAL) for field in msgspec.structs.fields(struct)]
    return [ARRAY if struct.__struct_config__.array_like else MAP, *fields]


def structs() -> dict[str, list[str]]:
    """All of today's, by module and name."""
    found: dict[str, list[str]] = {}
    for name in MODULES:
        for each, struct in sorted(vars(importlib.import_module(name)).items()):
            is_struct = inspect.isclass(struct) and issubclass(struct, msgspec.Struct)
            if is_struct and struct.__module__ == name and struct.__struct_fields__:
                found[f"{name}.{each}"] = described(struct)
    return found


def broken(recorded: list[str], today: list[str]) -> str:
    """Why the two do not understand each other; "" when they do, in both directions."""
    (was, *before), (is_now, *now) = recorded, today
    if was != is_now:
        return f"was encoded as {was}, is as {is_now}"
    names_before, names_now = ([field.removesuffix(OPTIONAL) for field in fields] for fields in (before, now))
    if was == ARRAY and names_now[: len(before)] != names_before:
        return f"began with {names_before}, and does not any more"
    gone = set(names_before) - set(names_now)
    if gone:
        return f"lacks {sorted(gone)}"
    needed = {field for field in now if not field.endswith(OPTIONAL)} - set(before)
    return f"cannot be read without {sorted(needed)}, which the older release does not write" if needed else ""


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(fields)}" for name, fields in structs().items()]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
