"""One call to etcd, over as many members as its deadline and its safety allow.

A read is tried on one member after the other until its deadline. A transaction leaves this process a second time
only after a failure that proves that the first one did nothing (`verdicts`). This is the seam where grpc's
exceptions become Copypool's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TypeAlias

import grpc
import grpc.aio

from copypool.protocol.errors import BrokenInvariant, CatalogDown, Fenced, NoSpace, OutcomeUnknown
from copypool_coordinator.etcd.channels import CONNECT_TIMEOUT_S, Endpoint, Members, Token
from copypool_coordinator.etcd.verdicts import Failure, RevisionGone, judge
from copypool_coordinator.etcd.wire import Message

#: Pause between two rounds over the members, while they have no leader or refuse for lack of room in a queue.
ROUND_PAUSE_S = 0.1
#: An attempt of a read on one of several members gets at least this long.
ATTEMPT_MIN_S = 0.5
#: For how long a request that nobody answered says that etcd is away, unless one is answered before.
AWAY_S = 15.0

Metadata: TypeAlias = list[tuple[str, str]]
#: Sends one request: (endpoint, deadline in seconds from now, metadata) -> reply.
Send: TypeAlias = Callable[[Endpoint, float, Metadata], Awaitable[Message]]


class Repeat(Enum):
    """May the request be sent again when nobody knows what became of it?"""

    SAFE = "safe"
    NEVER = "never"


class Attempts:
    """Runs requests over the members; holds the token and the state of the door (open, closed)."""

    def __init__(self, members: Members, token: Token, timeout_s: float) -> None:
        self.members = members
        self.token = token
        self.timeout_s = timeout_s
        self.closed = False
        self._trouble = ""
        self._trouble_s = 0.0

    @property
    def away(self) -> str:
        """Why etcd is taken to be away: the last request was not answered, a moment ago. "": it is there."""
        late = asyncio.get_running_loop().time() - self._trouble_s > AWAY_S
        return "" if late else self._trouble

    def metadata(self) -> Metadata:
        """`hasleader` makes a member without a leader refuse at once, before it does anything."""
        if self.token.value:
            return [("hasleader", "true"), ("token", self.token.value)]
        return [("hasleader", "true")]

    async def run(self, what: str, send: Send, repeat: Repeat, *, timeout_s: float | None = None) -> Message:
        """Send until one member answers or the deadline passes.

        Raises:
            CatalogDown: nothing was changed: no member could be reached, or none answered a read.
            OutcomeUnknown: `repeat` is NEVER, and the request may have been applied.
            NoSpace: etcd's quota is exceeded. **Of a request that may not be repeated this is no proof**: see
                `verdicts`; the caller decides.
            Fenced: the lease named in the request is gone; nothing was changed.
            RevisionGone: the revision asked for cannot be read.
            BrokenInvariant: the request breaks etcd's rules; nothing was changed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.timeout_s if timeout_s is None else timeout_s)
        trouble = "no time to try"
        renewals = 0
        while not self.closed:
            reached_one = False
            members = list(self.members)
            for position, endpoint in enumerate(members):
                left_s = deadline - loop.time()
                if left_s <= 0:
                    break
                if not await endpoint.connected(min(CONNECT_TIMEOUT_S, left_s)):
                    trouble = f"{endpoint.name} takes no connection"
                    self.members.pass_over(endpoint)
                    continue
                reached_one = True
                left_s = deadline - loop.time()
                if repeat is Repeat.SAFE:
                    left_s = min(left_s, max(left_s / (len(members) - position), ATTEMPT_MIN_S))
                if left_s <= 0:
                    break
                token = self.token.value
                try:
                    if self.token.wanted and not token:
                        await self._renew(endpoint, token, left_s)
                    return await self._send(what, endpoint, send, left_s, repeat)
                except _Again as again:
                    trouble = f"{endpoint.name}: {again}"
                    if not again.token_refused:
                        self.members.pass_over(endpoint)
                        continue
                    # Every member may refuse one stale token; a fresh token that is refused is no accident.
                    renewals += 1
                    if not self.token.wanted or renewals > len(members) + 1:
                        raise CatalogDown(f"etcd refuses the user for {what}: {again}") from again
                    if self.token.value == token:
                        self.token.value = ""
            left_s = deadline - loop.time()
            if not reached_one or left_s <= ROUND_PAUSE_S:
                break
            await asyncio.sleep(ROUND_PAUSE_S)
        if self.closed:
            trouble = "the client is closed"
        self._trouble, self._trouble_s = trouble, loop.time()
        raise CatalogDown(f"etcd did not do {what}: {trouble}")

    async def _renew(self, endpoint: Endpoint, stale: str, timeout_s: float) -> None:
        try:
            with endpoint.in_use():
                await self.token.renew(endpoint, stale=stale, timeout_s=timeout_s)
        except grpc.aio.AioRpcError as error:
            if judge(error.code().name, error.details() or "") is Failure.FORBIDDEN:
                raise CatalogDown(f"etcd refuses the user or password: {error.details()}") from error
            raise _Again(error.details() or error.code().name) from error

    async def _send(self, what: str, endpoint: Endpoint, send: Send, left_s: float, repeat: Repeat) -> Message:
        """One attempt; `_Again` when the next member may be tried."""
        try:
            with endpoint.in_use():
                reply = await send(endpoint, left_s, self.metadata())
        except asyncio.CancelledError:
            # Closing a channel cancels its calls; that must not look like a cancelled caller.
            task = asyncio.current_task()
            if not self.closed or (task is not None and task.cancelling()):
                raise
            if repeat is Repeat.NEVER:
                raise OutcomeUnknown(f"the client was closed during {what}") from None
            raise CatalogDown(f"the client was closed during {what}") from None
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            code, details = _status(error)
        else:
            self._trouble = ""
            return reply
        self._judge(what, endpoint, code, details, repeat)
        raise _Again(details)

    def _judge(self, what: str, endpoint: Endpoint, code: str, details: str, repeat: Repeat) -> None:
        """Return when trying again is safe (`_Again` otherwise carries that the token is stale)."""
        failure = judge(code, details)
        where = f"{what} on {endpoint.name}: {details}"
        if failure is Failure.TOKEN:
            raise _Again(details, token_refused=True)
        if failure is Failure.NO_SPACE:
            raise NoSpace(f"etcd is out of space: {where}", endpoint=endpoint.name)
        if failure is Failure.NO_LEASE:
            raise Fenced(f"the lease is gone: {where}")
        if failure in (Failure.COMPACTED, Failure.FUTURE):
            raise RevisionGone(where, compacted=failure is Failure.COMPACTED)
        if failure is Failure.FORBIDDEN:
            raise CatalogDown(f"etcd refuses the user: {where}")
        if failure is Failure.MISUSE:
            raise BrokenInvariant(f"etcd refuses the request itself: {where}")
        if failure is Failure.UNKNOWN and repeat is Repeat.NEVER:
            self.members.pass_over(endpoint)
            raise OutcomeUnknown(f"nobody knows whether etcd did {where}", endpoint=endpoint.name, grpc_code=code)


class _Again(Exception):
    """Nothing was changed, or the request may be repeated: ask another member."""

    def __init__(self, message: str, *, token_refused: bool = False) -> None:
        super().__init__(message)
        self.token_refused = token_refused


def _status(error: Exception) -> tuple[str, str]:
    """(code name, sentence) of a grpc failure; a channel closed under a call counts as an unknown outcome."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name, error.details() or error.code().name
    return "CANCELLED", str(error) or "the channel is closed"
