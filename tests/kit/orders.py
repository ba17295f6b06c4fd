"""Is there an order of what happened to one file that one register explains? The search itself.

After Wing and Gong (1993), with the memory of dead ends that Lowe (2017) adds. Three choices keep it small and lose no
order that could explain the history. (1) An observation that fits the present state goes first: it changes nothing.
(2) An unknown write is placed only just before an operation that needs it: followed by anything else it could be left
out, for unknown writes are never needed to *prevent* something. (3) Of required writes with versions only the lowest
goes next. Pure and bounded; what an operation means is said in `kit.checker`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kit.history import NEVER, Operation


class Action(NamedTuple):
    """One operation as its path sees it."""

    operation: Operation
    invoked: int
    completed: int
    writes: bool  #: False: an observation
    optional: bool  #: may have taken effect, or not
    digest: str  #: stored or observed; empty: no file
    version: int  #: 0: not known

    @property
    def needs_file(self) -> bool:
        """An acknowledged delete."""
        return self.writes and not self.digest and not self.optional


class _Node(NamedTuple):
    """A prefix of an order: what is placed, and the state after it."""

    first: int  #: required actions before this one are all placed
    placed: int  #: bit i: required action `first + i` is placed
    used: int  #: bit i: optional action i is placed
    digest: str
    version: int
    floor: int  #: highest version placed so far
    latest: int  #: highest invocation placed so far


def search(actions: Sequence[Action], states_max: int) -> tuple[bool | None, int]:
    """Whether some order explains the actions of one path, which begins without a file, and the states visited.

    None: `states_max` were visited and none of them was the end.
    """
    required = sorted((action for action in actions if not action.optional), key=lambda action: action.invoked)
    optional = sorted((action for action in actions if action.optional), key=lambda action: action.invoked)
    seen: dict[tuple[int, int, str, int], list[int]] = defaultdict(list)
    observed = {action.digest for action in required if not action.writes}
    stack = [_Node(0, 0, 0, "", 0, 0, -1)]
    visited = 0
    while stack:
        node, candidates, limit = _observe(required, stack.pop())
        if node.first == len(required):
            return True, visited
        spent = seen[node.first, node.placed, node.digest, node.version]
        if any(used & node.used == used for used in spent):  # been here with as many unknown writes left, or more
            continue
        if visited == states_max:
            return None, visited
        visited += 1
        spent.append(node.used)
        stack.extend(_branches(required, optional, observed, node, candidates, limit))
    return False, visited


def _fits(seen: Action, digest: str, version: int) -> bool:
    return seen.digest == digest and (not digest or not seen.version or not version or seen.version == version)


def _observe(required: Sequence[Action], node: _Node) -> tuple[_Node, list[int], int]:
    """Place every observation that the state answers. Also: what may come next, and the completion that bounds it."""
    first, placed, latest = node.first, node.placed, node.latest
    limit = NEVER
    candidates: list[int] = []
    at = first
    while at < len(required) and required[at].invoked <= limit:  # equal: a position is before the event of its number
        if not placed >> (at - first) & 1:
            action = required[at]
            if not action.writes and _fits(action, node.digest, node.version):
                placed |= 1 << (at - first)
                latest = max(latest, action.invoked)
            else:
                candidates.append(at)
                limit = min(limit, action.completed)
        at += 1
    ones = (~placed & (placed + 1)).bit_length() - 1
    return node._replace(first=first + ones, placed=placed >> ones, latest=latest), candidates, limit


def _branches(
    required: Sequence[Action],
    optional: Sequence[Action],
    observed: set[str],
    node: _Node,
    candidates: list[int],
    limit: int,
) -> Iterator[_Node]:
    """Every way to go on: a required write, or an optional one and what needs it."""
    lowest = min((required[at].version for at in candidates if required[at].writes and required[at].version), default=0)
    for at in candidates:
        action = required[at]
        if action.writes and action.version and action.version != lowest:
            continue
        if action.writes and not (action.needs_file and not node.digest):
            yield from _place(node, at, action)
            continue
        tried: set[tuple[str, int]] = set()
        for number, helper in enumerate(optional):
            if helper.invoked >= limit:
                break
            effect = (
                (helper.digest, helper.version) if helper.digest in observed or not helper.digest else ("unseen", 0)
            )
            if node.used >> number & 1 or helper.completed < node.latest or effect in tried:
                continue
            if not (helper.digest if action.needs_file else _fits(action, helper.digest, helper.version)):
                continue
            if helper.completed == NEVER:  # a later one of the same effect can do nothing that this one cannot
                tried.add(effect)
            for after in _apply(node, helper):
                yield from _place(after._replace(used=node.used | 1 << number), at, action)


def _apply(node: _Node, write: Action) -> Iterator[_Node]:
    if write.version and write.version <= node.floor:
        return
    yield node._replace(
        digest=write.digest,
        version=write.version,
        floor=write.version or node.floor,
        latest=max(node.latest, write.invoked),
    )


def _place(node: _Node, at: int, action: Action) -> Iterator[_Node]:
    placed = node._replace(placed=node.placed | 1 << (at - node.first), latest=max(node.latest, action.invoked))
    if action.writes:
        yield from _apply(placed, action)
    else:
        yield placed
