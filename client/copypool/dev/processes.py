"""Detached processes: start one, recognise it again, send it a signal, wait for its end.

A process is recognised by its id *and* by an argument that no other program has (the path of its configuration
file), so a reused process id is never taken for ours. Signals go through a pidfd that is opened before the check:
between check and signal the id cannot change hands. Linux only.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

State = Literal["running", "stopped", "down"]

_EXEC_TIMEOUT_S = 1.0
_EXEC_POLL_S = 0.001


def spawn(arguments: Sequence[str], log_file: Path, environment: Mapping[str, str]) -> int:
    """Start a program in a session of its own, its output appended to `log_file`; the process id.

    It outlives its starter and gets none of the starter's open files. `FileNotFoundError` when there is no program.
    """
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        arguments[0],
        list(arguments),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_file), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    # The kernel lets the starter go on a moment before the new program's arguments can be seen.
    deadline = time.monotonic() + _EXEC_TIMEOUT_S
    while _letter(pid) not in "ZX" and not _arguments(pid) and time.monotonic() < deadline:
        time.sleep(_EXEC_POLL_S)
    return pid


def _arguments(pid: int) -> list[bytes]:
    """The command line; empty for a process that has ended, or has not begun."""
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return content.split(b"\0") if content else []


def _letter(pid: int) -> str:
    """The state as in proc(5); X when there is no such process."""
    try:
        # The name in the second field may hold anything; the state follows its closing bracket.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _reap(pid: int) -> None:
    # Ours to bury only when this very process started it; else its parent, or init, does.
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def state_of(pid: int, mark: str) -> State:
    """Whether the process with this id runs, is stopped (SIGSTOP), or is not the one with `mark` as an argument."""
    _reap(pid)
    if os.fsencode(mark) not in _arguments(pid):
        return "down"
    return "stopped" if _letter(pid) in "Tt" else "running"


def send(pid: int, mark: str, number: signal.Signals) -> bool:
    """Send a signal to the process with this id and mark. False, and nothing sent, when it is not there."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if state_of(pid, mark) == "down":
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait_gone(pid: int, mark: str, timeout_s: float) -> bool:
    """Wait until the process has ended and nothing of it is open any more, at most `timeout_s`. True when it has."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        arguments = _arguments(pid)
        if arguments and os.fsencode(mark) not in arguments:
            return True
        # Arguments go with its memory, before its sockets and files do: one that has none may be on its way out.
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        gone = bool(poller.poll(timeout_s * 1000))
    finally:
        os.close(handle)
    _reap(pid)
    return gone
