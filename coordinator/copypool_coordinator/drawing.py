"""A seeded sample of the directory in which every file is as likely as any other, drawn part by part. Pure.

The directory cannot be counted on a live path, so it is not numbered. It is cut where fences stand (one path in 1,024
has one) into stretches of about a page. A round visits them all in an order that the seed gives, and takes of each the
share that the wanted count is of all, but not less than a few; within a stretch a hash of seed and path decides whose
turn it is. What one round leaves is for the next. So any coordinator can draw any part, and none remembers anything.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
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


def stretches(fences: Mapping[int, Sequence[str]], namespaces: Sequence[int]) -> list[Stretch]:
    """The directory of these namespaces, cut at its fences."""
    found = []
    for namespace in sorted(namespaces):
        cuts = fences.get(namespace, ())
        found += [Stretch(namespace, after, last) for after, last in zip(["", *cuts], [*cuts, None], strict=True)]
    return found


def turn(cut: Sequence[Stretch], seed: int, part: int) -> Turn:
    """Which stretch this part is drawn from, and in which round."""
    order = random.Random(seed).sample(range(len(cut)), len(cut))
    return Turn(cut[order[part % len(cut)]], part // len(cut))


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
