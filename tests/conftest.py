"""What holds for every test: no blocking call in the event loop, nothing left behind.

A blocking call of our own code on the loop's thread, a thread, a child process or an open file that outlives its test
fails that test. Leaked tasks and sessions fail it too: they end as warnings, and warnings are errors.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, Phase, settings

_PACKAGES = ["copypool", "copypool_node", "copypool_coordinator"]
#: A blocking library on purpose: `copypool dev` runs processes, and serves nobody meanwhile.
_BLOCKING_BY_DESIGN = ["copypool.dev"]
#: They live as long as the process: gRPC's poller (see the etcd door) and default executors, which end with their loop.
_THREADS_KEPT = ("_poll_wrapper", "asyncio_", "ThreadPoolExecutor")
_SETTLE_S = 20.0

# A change is judged by the same examples as the one before it; `make explore` looks for new ones. How fast they are
# made says something about the machine's load, nothing about the code. Shrinking may outlast a test's time, and that
# ends the run: the example that failed is printed, and `--hypothesis-profile=default` shrinks it.
settings.register_profile(
    "fresh",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)],
    print_blob=True,
)
settings.register_profile("same", settings.get_profile("fresh"), derandomize=True, database=None)
settings.load_profile("same")


def pytest_configure() -> None:
    """Processes of tests hear Ctrl-C, even if a shell started the run in its background and so has it ignored.

    Not by a `preexec_fn` of each: that forks this process with gRPC's threads in it, and the child may abort.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_blocking_call() -> Iterator[None]:
    with blockbuster_ctx(_PACKAGES, excluded_modules=_BLOCKING_BY_DESIGN):
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    # A cluster that tests share has the processes that they start anew: it ends all of them itself.
    shared = "shared_cluster" in request.fixturenames
    before = _left(shared)
    yield
    deadline_s = time.monotonic() + _SETTLE_S
    while left := _left(shared) - before:
        if time.monotonic() > deadline_s:
            pytest.fail(f"left behind: {', '.join(sorted(left))}")
        time.sleep(0.02)


def _left(shared: bool) -> set[str]:
    return (set() if shared else _children()) | _threads() | _files()


def _children() -> set[str]:
    """Child processes by what they run: one of a shared cluster that a test kills and starts again is the same."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.add(f"process {' '.join(child.cmdline()) or child.name()}")
    return found


def _threads() -> set[str]:
    names = {thread.name for thread in threading.enumerate() if thread.is_alive()}
    return {f"thread {name}" for name in names if not any(kept in name for kept in _THREADS_KEPT)}


def _files() -> set[str]:
    """Regular files that are open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith("/") and os.path.isfile(target):
                found.add(f"file {target} (descriptor {fd})")
    return found
