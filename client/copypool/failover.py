"""Which source a segment is read from next. A pure state machine: failures and progress in, the next source out.

A source that failed is not asked again *at the same byte*; past that byte it is, after the others: two locations may
each have a bad block, at different places, and together still hold every byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from copypool.protocol.api import Source

Reason = Literal["refused", "timeout", "stall", "checksum", "error", "expired"]

AWAY_S = 3.0  #: how long a node that did not answer is asked last; about what the cluster needs to notice it

#: A source that could not be reached costs a timeout to ask again, one with a bad block costs nothing.
_WEIGHT: dict[Reason, int] = {"expired": 0, "checksum": 1, "error": 2, "refused": 3, "stall": 4, "timeout": 5}


class AwayNodes:
    """Nodes that did not answer a moment ago: asked last for a while, so that each read does not wait for them anew."""

    __slots__ = ("_until_s",)

    def __init__(self) -> None:
        self._until_s: dict[int, float] = {}

    def noted(self, node_id: int, reason: Reason, now_s: float) -> None:
        """A read from this node failed; only silence and refusal say something about the node as a whole."""
        if reason in ("refused", "timeout", "stall"):
            self._until_s[node_id] = now_s + AWAY_S

    def answered(self, node_id: int) -> None:
        """The node answered a read."""
        if self._until_s:
            self._until_s.pop(node_id, None)

    def ids(self, now_s: float) -> list[int]:
        """Nodes to ask last."""
        if not self._until_s:
            return []
        self._until_s = {node: until_s for node, until_s in self._until_s.items() if until_s > now_s}
        return list(self._until_s)


class SegmentSources:
    """Sources of one segment, best first, and what was learned about them while reading it.

    Invariant 3 is not in here: this decides only whom to ask, the checker decides what counts as a byte.
    """

    __slots__ = ("_absent", "_failed_at", "_refreshed_at", "_sources", "_weight", "story")

    def __init__(self, sources: Sequence[Source], away: Sequence[int] = ()) -> None:
        """`away`: ids of nodes to ask last."""
        self._sources = sorted(sources, key=lambda source: source.node_id in away)
        self._failed_at: dict[tuple[int, str], int] = {}
        self._weight: dict[tuple[int, str], int] = {}
        self._absent: set[tuple[int, str]] = set()
        self._refreshed_at: int | None = None
        self.story: list[tuple[str, Reason, int]] = []  #: (node, reason, byte) of every failure, for the error

    def candidates(self, position: int) -> list[Source]:
        """Sources worth asking for the byte at `position`, best first; empty when all failed there."""
        usable = [
            (self._weight.get(_key(source), 0), rank, source)
            for rank, source in enumerate(self._sources)
            if self._failed_at.get(_key(source)) != position
        ]
        return [source for _, _, source in sorted(usable, key=lambda item: item[:2])]

    def failed(self, source: Source, position: int, reason: Reason, *, absent: bool = False) -> None:
        """The source gave nothing usable at `position`; every byte before it was delivered.

        `absent`: it answered that it does not hold the segment.
        """
        key = _key(source)
        if absent:
            self._absent.add(key)
        self._failed_at[key] = position
        self._weight[key] = max(_WEIGHT[reason], self._weight.get(key, 0))
        self.story.append((source.node, reason, position))
        del self.story[:-32]

    def may_refresh(self, position: int) -> bool:
        """Whether to look the same version up once more: at most once without progress since the last time."""
        return self._refreshed_at is None or position > self._refreshed_at

    def refreshed(self, sources: Sequence[Source], position: int, away: Sequence[int] = ()) -> None:
        """Start again at `position` with what a new lookup of the same version said."""
        self._sources = sorted(sources, key=lambda source: source.node_id in away)
        self._failed_at.clear()
        self._weight.clear()
        self._absent.clear()
        self._refreshed_at = position

    @property
    def only_bad_checksums(self) -> bool:
        """Whether sources answered, and each with bytes that failed their checksum."""
        current = [_key(source) for source in self._sources]
        return bool(current) and all(self._weight.get(key) == _WEIGHT["checksum"] for key in current)

    @property
    def nothing_to_come(self) -> bool:
        """Whether no source can ever give the byte at which all of them failed.

        Each was given up, or answered with bad bytes that its own node had found bad before, or has no file. A repair
        that merges blocks has no other sources than these. One that did not answer may come back.
        """
        return all(self._is_final(source) for source in self._sources)

    def _is_final(self, source: Source) -> bool:
        key = _key(source)
        if source.given_up:
            return True
        if key in self._absent:
            return source.state in ("missing", "copying", "dropping")
        return self._weight.get(key) == _WEIGHT["checksum"] and source.state != "good"

    def describe(self) -> str:
        """What was tried, in a few words."""
        return ", ".join(f"{node}: {reason} at byte {byte}" for node, reason, byte in self.story[-8:]) or "no source"


def _key(source: Source) -> tuple[int, str]:
    return source.node_id, source.volume
