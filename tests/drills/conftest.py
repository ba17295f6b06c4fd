"""One cluster in containers for all drills, made anew after one that failed or left it hurt; the table at the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from drills import table
from drills.cluster import DrillCluster
from drills.containers import Containers
from drills.soundness import sound
from drills.table import Row

TABLE = Path(__file__).with_name("availability.md")
README = Path(__file__).parents[2] / "README.md"
ABOUT = """\
What clients felt from the injection of a fault until every live byte was where policy wants it again, as `make drills`
took it: eight clients, three etcd members, two coordinators, four nodes in two zones, each a container, TLS on all
links. Reads are gets, stats and listings. "Unknown" writes were not answered; the checker explains the whole
history with each of them either applied or not. A stall is the longest time that one client waited for an answer,
over as many calls as that took. The time to full protection contains the fault's own length."""

_rows = pytest.StashKey[list[Row]]()
_lines = pytest.StashKey[list[str]]()
_cluster = pytest.StashKey[list[Containers]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_rows] = []
    config.stash[_lines] = []
    config.stash[_cluster] = []
    # A request that is given up closes its TLS connection, and asyncio waits up to 30 s for the other side's farewell:
    # one that is cut off says none, and the drill's loop ends before. Whether clients leak is for other tests to say.
    for leftover in ("_SelectorTransport.__del__", "<socket.socket"):
        pattern = f"ignore:Exception ignored in.*{leftover}:pytest.PytestUnraisableExceptionWarning"
        config.addinivalue_line("filterwarnings", pattern)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Puts a row into the table."""
    return request.config.stash[_rows].append


@pytest.fixture
def record_line(request: pytest.FixtureRequest) -> list[str]:
    """Takes sentences that are printed below the table."""
    return request.config.stash[_lines]


@pytest.fixture
async def shared_cluster(request: pytest.FixtureRequest) -> AsyncIterator[DrillCluster]:
    """The cluster that drills share. A drill that fails takes it with it, and one that leaves it hurt fails."""
    kept = request.config.stash[_cluster]
    if not kept:
        containers = Containers()
        await asyncio.to_thread(containers.up)
        kept.append(containers)
    failures = request.session.testsfailed
    cluster = DrillCluster(kept[0])
    yield cluster
    is_sound = False
    try:
        if request.session.testsfailed == failures:
            await sound(cluster)
            is_sound = True
    finally:
        if not is_sound:
            await asyncio.to_thread(_close, kept)


@pytest.fixture
def no_shared_cluster(request: pytest.FixtureRequest) -> None:
    """Ends the shared cluster, for a drill that has one of its own; the next drill that shares makes it anew."""
    _close(request.config.stash[_cluster])


def _close(kept: list[Containers]) -> None:
    while kept:
        containers = kept.pop()
        containers.close()
        assert not containers.leftovers(), f"left behind: {containers.leftovers()}"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    _close(session.config.stash[_cluster])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows, lines = config.stash[_rows], config.stash[_lines]
    if rows or lines:
        terminalreporter.write("\n" + table.table(rows, lines))
    if os.environ.get("DRILLS_TABLE"):
        table.write(TABLE, README, ABOUT, rows, lines)
