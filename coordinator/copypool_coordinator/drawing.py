"""A seeded sample of the directory in which every file is as likely as any other, drawn part by part. Pure.

The directory cannot be counted on a live path, so it is not numbered. It is cut where fences stand (one path in 1,024
has one) into stretches of about a page. A round visits them all in an order that the seed gives, and takes of each the
share that the wanted count is of all, but not less than a few; within a stretch a hash of seed and path decides whose
turn it is. What one round leaves is for the next. So any coordinator can draw any part, and none remembers anything.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple, TypeVar

R = TypeVar("R")

STRETCH_FILES = 1024  #: mean distance of fences
TAKEN_MIN = 8  #: of a stretch: to read a page for one name would be a waste


class Stretch(NamedTuple):
    """Names of a namespace behind `after`, up to and with `last`; "" is the begin, None the end."""

    namespace: int
    after: str
    last: str | None


class Turn(NamedTuple):
    """A part of the sample."""

    stretch: Stretch
    round: int


class Cut:
    """The directory of some namespaces, cut at its fences; made anew for each part, so it copies nothing."""

    def __init__(self, fences: Mapping[int, Sequence[str]], namespaces: Iterable[int]) -> None:
        self._fences = [(namespace, fences.get(namespace, ())) for namespace in sorted(namespaces)]
        self.parts = sum(len(cuts) + 1 for _, cuts in self._fences)  #: how many stretches there are

    def stretch(self, number: int) -> Stretch:
        """The stretch of this number, from 0 on, in the order of the names."""
        for namespace, cuts in self._fences:
            if number <= len(cuts):
                after = cuts[number - 1] if number else ""
                return Stretch(namespace, after, cuts[number] if number < len(cuts) else None)
            number -= len(cuts) + 1
        raise IndexError(number)


def turn(cut: Cut, seed: int, part: int) -> Turn:
    """Which stretch this part is drawn from, and in which round: steps of a length that meets all of them."""
    source = random.Random(seed)
    first = source.randrange(cut.parts)
    step = source.randrange(1, cut.parts + 1)
    while math.gcd(step, cut.parts) != 1:
        step = source.randrange(1, cut.parts + 1)
    return Turn(cut.stretch((first + step * part) % cut.parts), part // cut.parts)


def drawn(
    names: Sequence[tuple[str, R]], seed: int, at: Turn, parts: int, count: int
) -> tuple[list[tuple[str, R]], bool]:
    """The files of this part out of all of its stretch, and whether some are left for a later round."""
    share = count / (STRETCH_FILES * parts)
    taken = max(TAKEN_MIN, math.ceil(share * len(names)))
    ordered = sorted(names, key=lambda item: _luck(seed, at.stretch.namespace, item[0]))
    first = at.round * taken
    return ordered[first : first + taken], first + taken < len(ordered)


def _luck(seed: int, namespace: int, path: str) -> bytes:
    return blake2b(f"{seed} {namespace} {path}".encode(), digest_size=8).digest()
