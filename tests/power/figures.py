"""What the power cuts of one run came to, and how many there are to be."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

#: Power cuts per file system, of nodes and of etcd each; `make power SEEDS=200` is the long run.
SEEDS = int(os.environ.get("COPYPOOL_POWER_SEEDS", "8"))
FIRST_SEED = int(os.environ.get("COPYPOOL_POWER_FIRST_SEED", "1"))


@dataclass
class Figures:
    """Sums over all tests of the run."""

    cuts: Counter[str] = field(default_factory=Counter)  #: by file system
    acked: int = 0  #: writes that were acknowledged before a cut
    checked: int = 0  #: reads of what was acknowledged, after one
    torn: int = 0  #: files with a tail that was never committed, before the node cut it
    canaries_lost: int = 0  #: cuts that took a file which was written just before and not synced

    def lines(self) -> list[str]:
        """For the end of the run."""
        total = sum(self.cuts.values())
        kinds = ", ".join(f"{count} on {kind}" for kind, count in sorted(self.cuts.items()))
        return [
            f"power cuts: {total} ({kinds}); {self.canaries_lost} of them lost what was not fsync'd",
            f"acknowledged writes: {self.acked}; reads that checked them afterwards: {self.checked}",
            f"torn tails found and cut: {self.torn}",
        ]


FIGURES = Figures()


def batches(size: int) -> list[list[int]]:
    """The seeds of this run, cut into lists of at most `size`."""
    seeds = list(range(FIRST_SEED, FIRST_SEED + SEEDS))
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]
