"""Where results are kept: `latest.json`, `latest.md`, README's table; `quick.*` of a quick run stay out of README."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench.results import Report
from bench.table import page, put_into

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).resolve().parents[2] / "README.md"


def load(quick: bool = False, results: Path = RESULTS) -> Report:
    """What is stored; an empty report when nothing is, or nothing that this version can read."""
    try:
        return msgspec.json.decode((results / _name(quick, "json")).read_bytes(), type=Report)
    except (FileNotFoundError, msgspec.ValidationError):
        return Report()


def save(report: Report, quick: bool = False, results: Path = RESULTS, readme: Path = README) -> None:
    """Write JSON and page, and the table into README unless it is of a quick run."""
    results.mkdir(exist_ok=True)
    (results / _name(quick, "json")).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    write_tables(report, quick, results, readme)


def write_tables(report: Report, quick: bool = False, results: Path = RESULTS, readme: Path = README) -> None:
    """Write the page, and README's table, from what is known already."""
    content = page(report)
    (results / _name(quick, "md")).write_text(content, "utf-8")
    if not quick:
        readme.write_text(put_into(readme.read_text("utf-8"), content), "utf-8")


def renew_tables(results: Path = RESULTS, readme: Path = README) -> bool:
    """Write the tables from what is stored; False, and nothing is written, when no row is that can be read.

    An empty table would take the place of one that was measured.
    """
    stored = load(results=results)
    if not stored.rows:
        return False
    write_tables(stored, results=results, readme=readme)
    return True


def _name(quick: bool, suffix: str) -> str:
    return f"{'quick' if quick else 'latest'}.{suffix}"
