"""Detached processes are started, recognised, frozen and ended; a reused process id is never taken for ours."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from copypool.dev import processes
from kit.eventually import eventually

MARK = "a mark that no other program has"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[int]:
    program = "import signal, sys; print('up', flush=True); signal.pause()"
    pid = processes.spawn([sys.executable, "-c", program, MARK], tmp_path / "log", os.environ)
    yield pid
    processes.send(pid, MARK, signal.SIGKILL)
    assert processes.wait_gone(pid, MARK, 60.0)


async def test_it_runs_is_frozen_goes_on_and_ends(sleeper: int) -> None:
    assert processes.state_of(sleeper, MARK) == "running"
    assert os.getsid(sleeper) == sleeper != os.getsid(0)
    assert processes.send(sleeper, MARK, signal.SIGSTOP)
    await eventually(lambda: processes.state_of(sleeper, MARK) == "stopped", "the process is frozen")
    assert not processes.wait_gone(sleeper, MARK, 0.05)
    assert processes.send(sleeper, MARK, signal.SIGCONT)
    assert processes.send(sleeper, MARK, signal.SIGTERM)
    assert processes.wait_gone(sleeper, MARK, 60.0)
    assert not processes.send(sleeper, MARK, signal.SIGTERM)


def test_another_program_under_the_same_id_gets_no_signal(sleeper: int) -> None:
    assert processes.state_of(sleeper, "another mark") == "down"
    assert not processes.send(sleeper, "another mark", signal.SIGKILL)
    assert processes.wait_gone(sleeper, "another mark", 0.0)
    assert processes.state_of(sleeper, MARK) == "running"


def test_a_program_that_ends_at_once_is_down(tmp_path: Path) -> None:
    pid = processes.spawn([sys.executable, "-c", "print('last words')", MARK], tmp_path / "log", os.environ)
    assert processes.wait_gone(pid, MARK, 60.0)
    assert (tmp_path / "log").read_text() == "last words\n"


async def test_a_process_that_has_lost_its_memory_and_not_its_files_is_waited_for(tmp_path: Path) -> None:
    """As a killed one is for a moment: its sockets still listen, and no argument tells any more whose it is."""
    program = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    program += "ctypes.CDLL(None).pthread_exit(None)"  # of the first thread alone
    pid = processes.spawn([sys.executable, "-c", program, MARK], tmp_path / "log", os.environ)
    try:
        await eventually(lambda: processes.state_of(pid, MARK) == "down", "its arguments are gone")
        assert not processes.wait_gone(pid, MARK, 0.05)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert processes.wait_gone(pid, MARK, 60.0)
