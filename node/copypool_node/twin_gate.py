"""When a class on a volume may look for a twin again, after one failed or none could be had. Pure: time comes in.

Under `fail` nothing can be acknowledged meanwhile, so the gate refuses early: an extent sealed for every try would
leave a trail of them. It opens soon and closes for longer each time. Under `continue` writes go on without a twin, and
what waits is only the next extent, which costs the rest of the present one: so it waits longer from the start.
"""

from __future__ import annotations

FAIL_FIRST_S = 0.2
FAIL_MAX_S = 15.0
CONTINUE_FIRST_S = 3.0
CONTINUE_MAX_S = 600.0
AVOID_S = 30.0  #: a node whose twin failed comes last this long
AVOID_MAX = 16


class TwinGate:
    """One per volume and class that wants twins."""

    def __init__(self) -> None:
        self._failures = 0
        self._until_s = 0.0
        self._required = False
        self._why = ""
        self._avoid: dict[int, float] = {}

    def failed(self, now_s: float, why: str, *, required: bool, node_id: int | None = None) -> None:
        """A twin failed, or none could be had; `required`: the class says `fail`.

        Failures that come while the gate is closed are of the same trouble and close it no longer.
        """
        if node_id is not None:
            self._avoid.pop(node_id, None)
            if len(self._avoid) >= AVOID_MAX:
                del self._avoid[next(iter(self._avoid))]
            self._avoid[node_id] = now_s + AVOID_S
        self._why, self._required = why, required
        if now_s < self._until_s:
            return
        first_s, max_s = (FAIL_FIRST_S, FAIL_MAX_S) if required else (CONTINUE_FIRST_S, CONTINUE_MAX_S)
        self._until_s = now_s + min(first_s * 2.0 ** min(self._failures, 16), max_s)
        self._failures += 1

    def met(self) -> None:
        """A group was committed with its twin's claim: the trouble is over."""
        self._failures = 0
        self._until_s = 0.0

    def refusal(self, now_s: float) -> str:
        """Why nothing can be written in this class now; empty: it can be tried."""
        return self._why if self._required and now_s < self._until_s else ""

    def due(self, now_s: float) -> bool:
        """Whether an extent without a twin may make way for one that might get one."""
        return now_s >= self._until_s

    def avoid(self, now_s: float) -> list[int]:
        """Nodes that a new twin should not be on if there is another place."""
        return [node for node, until_s in self._avoid.items() if until_s > now_s]
