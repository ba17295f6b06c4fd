"""Which etcd versions may hold a catalog.

Sources: etcd's announcements of the data inconsistency in 3.5.0 to 3.5.2, the changelogs of 3.4 and 3.5, and
etcd#17780 (after a crash close to a compaction whose newest revision is a delete, revisions can go back; fixed
in 3.4.32 and 3.5.14).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_NUMBERS = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


class Verdict(Enum):
    """What a coordinator does about an etcd version."""

    OK = "ok"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class VersionVerdict:
    """The verdict and a sentence for the log; the sentence is empty when all is well."""

    verdict: Verdict
    message: str = ""

    @property
    def refused(self) -> bool:
        """A coordinator does not start on this version unless told to by a flag."""
        return self.verdict is Verdict.REFUSE


def check_version(version: str) -> VersionVerdict:
    """Judge the version that an etcd member reports ("3.4.23"; suffixes are ignored)."""
    match = _NUMBERS.match(version)
    if match is None:
        return VersionVerdict(Verdict.REFUSE, f"etcd reports a version that cannot be read: {version!r}")
    release = tuple(int(number) for number in match.groups())
    if release <= (3, 4, 20) or (3, 5, 0) <= release <= (3, 5, 2):
        return VersionVerdict(
            Verdict.REFUSE,
            f"etcd {version} can lose or corrupt committed data: use 3.4.32, 3.5.14, 3.6 or later",
        )
    if release < (3, 4, 32) or (3, 5, 3) <= release < (3, 5, 14):
        return VersionVerdict(
            Verdict.WARN,
            f"etcd {version}: revisions may go back after a crash close to a compaction (etcd#17780): "
            "plan an upgrade to 3.4.32, 3.5.14, 3.6 or later",
        )
    return VersionVerdict(Verdict.OK)
