"""Typed settings of one process, from a TOML file, the environment and flags: one way for every server.

A setting has a name, `section.field` or `field`. Its value is, in this order:

1. what a flag says: `--set limits.streams=3`
2. what the environment says: `<PREFIX>LIMITS__STREAMS=3`
3. what the file says: `streams = 3` below `[limits]`
4. the default of its type.

Flags and environment give text fields as they are, other fields as TOML (`8`, `2.5`, `true`, `["a", "b"]`); a list of
texts may also be written with commas. Whatever names no setting is an error, wherever it stands, with the nearest name
that there is. Bounds are those of the types (`msgspec.Meta`).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

C = TypeVar("C", bound=msgspec.Struct)

#: What Kubernetes adds to the environment of every container for a Service whose name is that of the process.
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT)|PORT)(_.*)?")
_WHERE = re.compile(r"(?P<what>.*) - at `\$\.?(?P<name>.*)`", re.DOTALL)
_LIKE = 0.6  #: how much alike two names must be for one to be suggested for the other


class ConfigError(Exception):
    """The settings cannot be used; the message names the setting and says why."""


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a settings file. Blocking. `ConfigError` when it cannot be read or is no TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc


def parse(
    kind: type[C],
    raw: Mapping[str, Any],
    *,
    prefix: str,
    environment: Mapping[str, str],
    flags: Sequence[str] = (),
) -> C:
    """The settings `kind` of a parsed file, with what environment and flags (`NAME=VALUE`) say put over it.

    Pure. `prefix` marks the variables that are meant. `ConfigError` for an unknown name or a value out of bounds.
    """
    shape = _shape(kind)
    _refuse_unknown(raw, shape, "", sorted(names_of(kind)))
    merged = _copied(raw)
    for variable, text in sorted(environment.items()):
        if variable.startswith(prefix):
            _override(merged, kind, _Given.by_variable(variable, prefix, text))
    for flag in flags:
        name, equals, text = flag.partition("=")
        if not equals:
            raise ConfigError(f"--set {flag}: it is written --set NAME=VALUE")
        _override(merged, kind, _Given(name.strip(), text, f"--set {name.strip()}", None))
    try:
        return msgspec.convert(merged, kind)
    except msgspec.ValidationError as exc:
        raise ConfigError(_plain(str(exc))) from exc


def names_of(kind: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """Every setting that an override can name, with its type."""
    return dict(_names(_shape(kind), ""))


def section_of(kind: inspect.Type) -> inspect.StructType | None:
    """The section that a field of this type holds, required or not; None for a plain value."""
    if isinstance(kind, inspect.StructType):
        return kind
    if isinstance(kind, inspect.UnionType):
        return next((one for one in kind.types if isinstance(one, inspect.StructType)), None)
    return None


class _Given:
    """One override: the setting it names, its text, and how to name both it and its like in a message."""

    def __init__(self, name: str, text: str, where: str, prefix: str | None) -> None:
        self.name = name
        self.text = text
        self.where = where
        self._prefix = prefix

    @classmethod
    def by_variable(cls, variable: str, prefix: str, text: str) -> _Given:
        name = variable.removeprefix(prefix).lower().replace("__", ".")
        return cls(name, text, f"the environment variable {variable}", prefix)

    def refused(self, known: Iterable[str]) -> ConfigError:
        like = _nearest(self.name, known)
        if like and self._prefix is not None:
            like = self._prefix + like.upper().replace(".", "__")
        return ConfigError(f"{self.where} names no setting{_suggestion(like)}")

    @property
    def is_service_link(self) -> bool:
        return self._prefix is not None and _SERVICE_LINK.fullmatch(self.where.rpartition(self._prefix)[2]) is not None


def _shape(kind: type[msgspec.Struct]) -> inspect.StructType:
    shape = inspect.type_info(kind)
    assert isinstance(shape, inspect.StructType), "settings are structs"
    return shape


def _names(shape: inspect.StructType, above: str) -> Iterator[tuple[str, inspect.Type]]:
    for field in shape.fields:
        section = section_of(field.type)
        if section is None:
            yield above + field.name, field.type
        else:
            yield from _names(section, f"{above}{field.name}.")


def _refuse_unknown(raw: Mapping[str, Any], shape: inspect.StructType, above: str, known: Sequence[str]) -> None:
    fields = {field.name: field.type for field in shape.fields}
    for key, value in raw.items():
        name = above + key
        if key not in fields:
            raise ConfigError(f"{name}: there is no such setting{_suggestion(_nearest(name, known))}")
        kind = fields[key]
        section = section_of(kind)
        if section is not None and isinstance(value, dict):
            _refuse_unknown(value, section, f"{name}.", known)
        elif isinstance(kind, inspect.ListType) and isinstance(kind.item_type, inspect.StructType):
            items = value if isinstance(value, list) else []
            for number, item in enumerate(items):
                if isinstance(item, dict):
                    here = f"{name}[{number}]."
                    _refuse_unknown(item, kind.item_type, here, [here + one.name for one in kind.item_type.fields])


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), 1, _LIKE)
    return found[0] if found else ""


def _suggestion(like: str) -> str:
    return f"; is {like} meant?" if like else ""


def _copied(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in raw.items()}


def _override(merged: dict[str, Any], kind: type[msgspec.Struct], given: _Given) -> None:
    known = names_of(kind)
    if given.name not in known:
        if given.is_service_link:
            return
        raise given.refused(known)
    *sections, field = given.name.split(".")
    target = merged
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{section} is a section, and the file gives it a plain value")
    target[field] = _value(given, known[given.name])


def _value(given: _Given, kind: inspect.Type) -> object:
    if _is_text(kind):
        return given.text
    if isinstance(kind, inspect.ListType) and _is_text(kind.item_type) and not given.text.lstrip().startswith("["):
        return [part.strip() for part in given.text.split(",") if part.strip()]
    try:
        parsed = tomllib.loads(f"value = {given.text}")
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{given.where} is not a TOML value: {exc}") from exc
    if len(parsed) != 1:
        raise ConfigError(f"{given.where} holds more than one TOML value")
    return parsed["value"]


def _is_text(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.UnionType):
        return all(_is_text(one) for one in kind.types if not isinstance(one, inspect.NoneType))
    if isinstance(kind, inspect.LiteralType):
        return all(isinstance(value, str) for value in kind.values)
    return isinstance(kind, inspect.StrType)


def _plain(message: str) -> str:
    """msgspec's sentence with the setting's name in front, as it stands in the file."""
    found = _WHERE.fullmatch(message)
    return f"{found['name']}: {found['what']}" if found else message
