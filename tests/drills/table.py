"""The availability table: for each fault, what clients felt, and when all was whole again. Pure but `write`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kit.history import Availability

BEGIN, END = "<!-- availability -->\n", "<!-- end of availability -->"
HEAD = """\
| fault | reads | failed | writes | failed | unknown | longest stall: read | write | to full protection | bytes lost |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What one drill measured, from the injection of its fault until everything was at policy again."""

    name: str
    reads: int
    reads_failed: int
    writes: int
    writes_failed: int  #: definitely not applied
    writes_unknown: int  #: nobody told; both outcomes are explained by what was read later
    read_stall_ms: int
    write_stall_ms: int
    protected_s: float  #: from the injection, so the fault's own length is part of it
    bytes_lost: int

    @classmethod
    def of(cls, name: str, felt: Availability, protected_s: float, bytes_lost: int) -> Row:
        """The row of a drill."""
        return cls(
            name,
            felt.reads,
            felt.reads_failed,
            felt.writes,
            felt.writes_failed,
            felt.writes_unknown,
            round(felt.read_stall_max_s * 1000),
            round(felt.write_stall_max_s * 1000),
            protected_s,
            bytes_lost,
        )

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.reads} | {self.reads_failed} | {self.writes} | {self.writes_failed}"
            f" | {self.writes_unknown} | {self.read_stall_ms} ms | {self.write_stall_ms} ms"
            f" | {self.protected_s:.1f} s | {self.bytes_lost} |"
        )


def table(rows: Iterable[Row], lines: Iterable[str] = ()) -> str:
    """The table in Markdown, and sentences below it."""
    return HEAD + "".join(f"{row}\n" for row in rows) + "".join(f"\n{line}\n" for line in lines)


def write(page: Path, readme: Path, about: str, rows: Iterable[Row], lines: Iterable[str]) -> None:
    """Replace the page that holds the table, and the README's copy of it."""
    measured = table(rows, lines)
    page.write_text(f"# Availability, measured\n\n{about}\n\n{measured}")
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    readme.write_text(f"{before}{begin}{measured}{end}{after}")
