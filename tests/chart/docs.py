"""`python -m chart.docs`: writes helm/copypool/README.md anew, from the comments of values.yaml.

A comment that begins with `# --` describes the key below it, up to the next line that is no comment. Keys below a
described one need no description of their own; every value has one at itself or above it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chart.rendering import CHART, default_values

PAGE = CHART / "README.md"
#: Maps whose keys are the user's own: shown as one value.
_WHOLE = re.compile(r"(labels|annotations|settings|resources|affinity|nodeSelector|podAnnotations|commonLabels)$")
_KEY = re.compile(r"( *)(?:- )?([A-Za-z][A-Za-z0-9]*):")
HEAD = Path(__file__).with_name("readme_head.md")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table."""

    key: str
    default: Any
    meaning: str


def meanings(text: str) -> dict[str, str]:
    """Description by dotted key, of a values file."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    pending = ""
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("# -- "):
            pending = bare.removeprefix("# -- ")
        elif bare.startswith("#"):
            pending = f"{pending} {bare.removeprefix('#').strip()}" if pending else ""
        elif match := _KEY.match(line):
            depth = len(match[1])
            path = [(indent, key) for indent, key in path if indent < depth] + [(depth, match[2])]
            if pending:
                found[".".join(key for _, key in path)] = pending
            pending = ""
    return found


def entries(values: Any, known: dict[str, str], above: str = "") -> Iterator[Entry]:
    """The rows: every value, and every map that is shown whole."""
    for name, value in values.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value and not _WHOLE.search(name):
            if key in known:
                yield Entry(key, None, known[key])
            yield from entries(value, known, f"{key}.")
        else:
            yield Entry(key, value, known.get(key, ""))


def page() -> str:
    """The whole page."""
    known = meanings((CHART / "values.yaml").read_text("utf-8"))
    rows = []
    for entry in entries(default_values(), known):
        default = "" if entry.default is None and entry.meaning else f"`{json.dumps(entry.default)}`"
        rows.append(f"| `{entry.key}` | {default} | {entry.meaning.replace('|', chr(92) + '|')} |\n")
    return HEAD.read_text("utf-8").replace("{certificates}", _certificates()) + "".join(rows)


def _certificates() -> str:
    rows = []
    for part in ("coordinator", "node", "etcd"):
        names = f"`localhost`, `copypool-{part}`, `copypool-{part}.NAMESPACE`, `copypool-{part}.NAMESPACE.svc`, "
        names += f"`copypool-{part}.NAMESPACE.svc.cluster.local`, `*.copypool-{part}.NAMESPACE.svc.cluster.local`"
        shared = ", and what servers know each other by: `copypool.NAMESPACE.svc`" if part != "etcd" else ""
        rows.append(f"| `tls.secrets.{part}` | {names}{shared} |")
    return "\n".join(rows)


def main() -> None:
    """Entry point."""
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
