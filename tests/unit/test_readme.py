"""The README's table of errors says what the error tree says, and its table of dependencies what pyproject says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from copypool.protocol import errors

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")

#: Inner nodes of the tree: nothing answers with them, they only sort the others.
GROUPS = (errors.CopypoolError, errors.CallerError, errors.RetryLater, errors.Alarm)


def between(begin: str, end: str) -> str:
    return README.partition(f"<!-- {begin} -->\n")[2].partition(f"<!-- {end} -->")[0]


def error_table() -> str:
    rows = ["| code | HTTP | retryable | exit code | meaning |", "|---|---|---|---|---|"]
    for code, cls in errors.BY_CODE.items():
        if cls not in GROUPS:
            meaning = (cls.__doc__ or "").strip().splitlines()[0]
            retryable = "yes" if cls.retryable else "no"
            rows.append(f"| `{code}` | {cls.http_status} | {retryable} | {cls.exit_code} | {meaning} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_errors_is_that_of_the_code() -> None:
    assert between("errors", "end of errors") == error_table()


def test_every_dependency_is_justified() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {re.split(r"[<>=]", dependency)[0] for dependency in project["dependencies"]}
    justified = set(re.findall(r"^\| `([\w.-]+)`", between("dependencies", "end of dependencies"), re.MULTILINE))
    assert names == justified


def test_the_table_of_availability_is_the_one_that_was_measured() -> None:
    page = (ROOT / "tests/drills/availability.md").read_text("utf-8")
    assert between("availability", "end of availability") == page[page.index("| fault |") :]


def test_every_named_file_is_there() -> None:
    paths = re.findall(r"`((?:client|node|coordinator|tests|\.ci)/[\w./*-]+)`", README)
    assert paths
    assert [path for path in paths if not list(ROOT.glob(path))] == []
