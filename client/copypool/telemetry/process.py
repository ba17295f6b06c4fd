"""The process beside its work: how late its event loop is, its memory, CPU time and descriptors.

The names are those that every Prometheus client library uses, so that common dashboards know them.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from copypool.telemetry.metrics import Family, Histogram, Page, by_label, one

LAG_S = 0.25  #: between two looks at the event loop

BUILD = Family("copypool_build_info", "gauge", "1, labelled by the version that runs.", ("version",))
LAG = Family("copypool_event_loop_lag_seconds", "histogram", "How late the event loop runs timers.")
LOG_RECORDS = Family("copypool_log_records_total", "counter", "Log records of level warning and above.", ("level",))
CPU = Family("process_cpu_seconds_total", "counter", "User and system CPU time.")
MEMORY = Family("process_resident_memory_bytes", "gauge", "Resident memory.")
OPEN_FDS = Family("process_open_fds", "gauge", "Open file descriptors.")
MAX_FDS = Family("process_max_fds", "gauge", "Limit of open file descriptors.")
STARTED = Family("process_start_time_seconds", "gauge", "Start of the process, Unix time.")

FAMILIES = (BUILD, LAG, LOG_RECORDS, CPU, MEMORY, OPEN_FDS, MAX_FDS, STARTED)


class LoopLag:
    """Measures how late the running event loop is, from `start` to `stop`."""

    def __init__(self) -> None:
        self.seconds = Histogram()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, in the running loop."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LAG_S, self._look, loop, loop.time() + LAG_S)

    def stop(self) -> None:
        """End. Safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        now_s = loop.time()
        self.seconds.observe(max(0.0, now_s - due_s))
        self._timer = loop.call_later(LAG_S, self._look, loop, now_s + LAG_S)


async def page(lag: LoopLag, log_records: Mapping[str, int]) -> Page:
    """Everything above, now."""
    memory_bytes, descriptors = await asyncio.to_thread(_from_proc)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (
        (BUILD, [((_VERSION,), 1)]),
        (LAG, one(lag.seconds)),
        (LOG_RECORDS, by_label(log_records)),
        (CPU, one(used.ru_utime + used.ru_stime)),
        (MEMORY, one(memory_bytes)),
        (OPEN_FDS, one(descriptors)),
        (MAX_FDS, one(resource.getrlimit(resource.RLIMIT_NOFILE)[0])),
        (STARTED, one(_STARTED_UNIX_S)),
    )


def package_version() -> str:
    """Version of the installed distribution; "unknown" when it runs from loose files."""
    try:
        return version("copypool")
    except PackageNotFoundError:
        return "unknown"


_STARTED_UNIX_S = time.time()
_VERSION = package_version()


def _from_proc() -> tuple[int, int]:
    """Resident bytes and open descriptors. Blocking."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))
