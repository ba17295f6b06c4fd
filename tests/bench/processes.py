"""CPU time of processes, by name, from /proc: all their threads, user and system."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used since its start, in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


class CpuMeter:
    """CPU time of named processes from the making of this object to `read`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._begun = {name: cpu_s(pid) for name, pid in self._pids.items()}

    def read(self) -> dict[str, float]:
        """Seconds per process since this meter was made."""
        return {name: cpu_s(pid) - self._begun[name] for name, pid in self._pids.items()}

    def per_operation_us(self, operations: int) -> dict[str, float]:
        """The same in microseconds, divided by operations."""
        return {name: used * 1e6 / max(1, operations) for name, used in self.read().items()}


class ChildrenMeter:
    """CPU time of the child processes that ended, and were waited for, from the making of this object to `read`."""

    def __init__(self) -> None:
        self._begun_s = _children_s()

    def read(self) -> float:
        """Seconds since this meter was made."""
        return _children_s() - self._begun_s


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def yardstick_us() -> float:
    """CPU time that a fixed piece of Python takes now: busy neighbours on the same cores make it, and all else, dearer.

    Divide by it to compare CPU times of different moments. The median of five, 3 ms each on a quick machine.
    """
    return sorted(_work_us() for _ in range(5))[2]


def _work_us() -> float:
    begun_ns = time.thread_time_ns()
    table: dict[bytes, tuple[int, str]] = {}
    for number in range(8000):
        table[b"%016x" % (number * 7919)] = (number, str(number))
    assert sum(len(text) for _, text in table.values()) > 0
    return (time.thread_time_ns() - begun_ns) / 1000
