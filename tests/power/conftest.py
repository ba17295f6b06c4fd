"""Power cuts need root and a few tools: without them every test here fails and says what is missing."""

from __future__ import annotations

import pytest

from kit.power import private_mounts
from power.figures import FIGURES

private_mounts()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES.cuts:
        terminalreporter.section("power cuts")
        for line in FIGURES.lines():
            terminalreporter.write_line(line)
