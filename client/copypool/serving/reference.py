"""The reference page of a server's settings, made of their types.

    python -m copypool.serving.reference copypool_node.config:NodeConfig "a storage node" > node/CONFIG.md

A setting's meaning is its `#:` comment; bounds and defaults are the type's; the unit is the end of the name.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator

import msgspec
from msgspec import inspect as types

from copypool.serving.settings import section_of

#: Ends of names, the longest first.
_UNITS = {"_bytes_s": "bytes/s", "_bytes": "bytes", "_ms": "ms", "_s": "s"}
_KINDS = {
    types.StrType: "text",
    types.BoolType: "bool",
    types.IntType: "whole number",
    types.FloatType: "number",
}


def page(title: str, kind: type[msgspec.Struct], prefix: str) -> str:
    """The whole page, as Markdown."""
    shape = types.type_info(kind)
    assert isinstance(shape, types.StructType)
    lines = [f"# Settings of {title}", "", _INTRODUCTION.format(prefix=prefix), ""]
    for name, section, many in _sections(shape, "", False):
        if name:
            lines += [f"## `[[{name}]]`" if many else f"## `[{name}]`", "", inspect.getdoc(section.cls) or "", ""]
        lines += ["| name | type | unit | default | bounds | meaning |", "|---|---|---|---|---|---|"]
        docs = meanings(section.cls)
        for field in section.fields:
            if section_of(field.type) is None and not _items(field.type):
                lines.append(_row(field, docs[field.name], _kind(field.type)))
            else:
                target = f"`[[{field.name}]]`" if _items(field.type) else f"`[{field.name}]`"
                lines.append(_row(field, docs[field.name], target))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


_INTRODUCTION = """\
Made of the types by `make reference`; a test compares. A value is what a flag says (`--set limits.connections=64`),
else the environment (`{prefix}LIMITS__CONNECTIONS=64`), else the file
(`connections = 64` below `[limits]`), else the default. Flags and environment give texts as they are and everything
else as TOML; lists of texts may have commas instead. A name that is not here is an error, wherever it stands.
`--check-config` checks the settings and the files that they name, `--print-config` shows what is in force."""


def meanings(kind: type) -> dict[str, str]:
    """What the `#:` comments say of each field of a class: behind it, or in the lines above."""
    lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
    tree = ast.parse("\n".join(lines)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            behind = [_comment(line) for line in lines[node.lineno - 1 : node.end_lineno]]
            above: list[str] = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#:"):
                    break
                above.insert(0, _comment(line))
            found[node.target.id] = " ".join(part for part in [*above, *behind] if part)
    return found


def _comment(line: str) -> str:
    return line.partition("#:")[2].strip()


def _sections(shape: types.StructType, above: str, many: bool) -> Iterator[tuple[str, types.StructType, bool]]:
    yield above, shape, many
    for field in shape.fields:
        name = f"{above}.{field.name}" if above else field.name
        section = section_of(field.type)
        if section is not None:
            yield from _sections(section, name, False)
        elif items := _items(field.type):
            yield from _sections(items, name, True)


def _items(kind: types.Type) -> types.StructType | None:
    if isinstance(kind, types.ListType) and isinstance(kind.item_type, types.StructType):
        return kind.item_type
    return None


def _row(field: types.Field, meaning: str, kind: str) -> str:
    unit = next((unit for end, unit in _UNITS.items() if field.name.endswith(end)), "")
    return f"| `{field.name}` | {kind} | {unit} | {_default(field)} | {_bounds(field.type)} | {meaning} |"


def _kind(kind: types.Type) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_kind(one) for one in kind.types if not isinstance(one, types.NoneType))
    if isinstance(kind, types.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, types.ListType):
        return f"list of {_kind(kind.item_type)}"
    return _KINDS[type(kind)]


def _default(field: types.Field) -> str:
    if field.required:
        return "required"
    if field.default is None:
        return "unset"
    if isinstance(field.default, str | bool | int | float):
        return f"`{json.dumps(field.default)}`"
    return ""  # a section: its own fields tell


def _bounds(kind: types.Type) -> str:
    if isinstance(kind, types.UnionType):
        return "; ".join(found for one in kind.types if (found := _bounds(one)))
    limits = [
        (sign, getattr(kind, name, None)) for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    ]
    bounds = [f"{sign} {limit}" for sign, limit in limits if limit is not None]
    if (least := getattr(kind, "min_length", None)) is not None:
        bounds.append(f"at least {least}")
    return ", ".join(bounds)


def main(target: str, title: str) -> None:
    """Print the page of `module:Class`."""
    module, _, kind = target.partition(":")
    found = importlib.import_module(module)
    sys.stdout.write(page(title, getattr(found, kind), found.ENV_PREFIX))


if __name__ == "__main__":
    main(*sys.argv[1:])
