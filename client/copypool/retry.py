"""When a failed attempt is repeated, how long to wait, and which error a caller finally sees. Pure decisions.

Time comes in as monotonic seconds, randomness as a number in [0, 1). Nothing here sends anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from copypool.protocol.errors import (
    CatalogDown,
    CopypoolError,
    DigestRefused,
    Forbidden,
    Invalid,
    NoSpace,
    OutcomeUnknown,
    RetryLater,
    TooLarge,
    Unavailable,
)

AVOID_NODE_S = 5.0  #: how long a node that failed a write is asked for no other one
_FORBIDDEN_MAX = 2  #: fresh capabilities tried after one that was refused


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays with full jitter, so that many clients do not come back in step."""

    first_s: float = 0.02
    limit_s: float = 1.0

    def delay_s(self, attempt: int, random01: float) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 0): between 1/4 and all of the step."""
        step = min(self.limit_s, self.first_s * 2.0 ** min(attempt, 30))
        return step * (0.25 + 0.75 * random01)


@dataclass(slots=True)
class WriteRetry:
    """The story of one write id: says after each failure how to go on, or raises what the caller must know.

    A write whose outcome was unknown once stays so until a server gives a definite answer: the final error is then
    `OutcomeUnknown`, also when the last attempt failed for a harmless reason or found nothing to do.
    """

    deadline_s: float  #: monotonic time after which nothing is repeated
    backoff: Backoff = Backoff()
    attempts: int = 0
    outcome_unknown: bool = False
    _refused: int = 0
    _avoid: dict[int, float] = field(default_factory=dict)

    def avoid_nodes(self, now_s: float) -> list[int]:
        """Ids of nodes that failed this write a moment ago."""
        return [node for node, until_s in self._avoid.items() if until_s > now_s]

    def failed(self, error: CopypoolError, node_id: int | None, now_s: float, random01: float) -> float:
        """Seconds to wait before the next attempt, which takes another lease and repeats the same write id.

        `node_id` is None when the coordinator refused to name a node. Raises when repeating cannot help.
        """
        self.attempts += 1
        if isinstance(error, OutcomeUnknown):
            self.outcome_unknown = True
        self._raise_if_final(error, from_coordinator=node_id is None)
        if node_id is not None and not isinstance(error, DigestRefused | CatalogDown):
            self._avoid[node_id] = now_s + AVOID_NODE_S
        delay_s = self.backoff.delay_s(self.attempts - 1, random01)
        if now_s + delay_s >= self.deadline_s:
            self._raise(error)
        return delay_s

    def _raise_if_final(self, error: CopypoolError, *, from_coordinator: bool) -> None:
        if isinstance(error, NoSpace | CatalogDown) and from_coordinator:
            self._raise(error)  # the coordinators were asked with patience already
        if isinstance(error, OutcomeUnknown | RetryLater):
            return
        if not from_coordinator and isinstance(error, Forbidden | DigestRefused):
            # An expired or rotated capability; or a flip on the way, for the digest was made from these very bytes.
            self._refused += 1
            if self._refused <= _FORBIDDEN_MAX:
                return
        self._raise(error)

    def _raise(self, error: CopypoolError) -> NoReturn:
        # Malformed is malformed in every attempt. Anything else speaks of its own attempt only: an earlier one may
        # still wait in a node's queue and be applied later, for no row remembers a write id that was refused.
        if not self.outcome_unknown or isinstance(error, Invalid | TooLarge | OutcomeUnknown):
            raise error
        raise OutcomeUnknown(
            f"an earlier attempt may have been applied, and later ones failed: {error.message}; "
            "stat the file, or repeat with the same write id",
            attempts=self.attempts,
        ) from error


def call_error(last: CopypoolError | None, verb: str, waited_s: float) -> CopypoolError:
    """What a coordinator call that ran into its deadline raises."""
    if last is None:
        return Unavailable(f"no coordinator answered {verb!r} within {waited_s:.1f} s: is the cluster up?")
    return last
