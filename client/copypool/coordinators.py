"""Calls to whichever coordinator answers. Any of them answers anything, so one is kept until it fails."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from copypool.protocol.errors import (
    BrokenInvariant,
    CatalogDown,
    CopypoolError,
    Invalid,
    NoSpace,
    OutcomeUnknown,
    RetryLater,
    Unauthorized,
)
from copypool.protocol.routes import MSGPACK
from copypool.retry import Backoff, call_error
from copypool.transport import LinkFailed, Transport

log = logging.getLogger(__name__)

T = TypeVar("T")

CALL_DEADLINE_S = 10.0
CATALOG_PATIENCE_S = 2.0  #: how long "etcd does not answer" is repeated: an etcd election passes, an outage is told


class ClusterClock:
    """Cluster time in milliseconds: what a coordinator said last, plus the monotonic time since then."""

    __slots__ = ("_offset_ms",)

    def __init__(self) -> None:
        self._offset_ms: float | None = None

    def heard(self, cluster_time_ms: int) -> None:
        """A coordinator just answered with this cluster time."""
        self._offset_ms = cluster_time_ms - time.monotonic() * 1000

    def now_ms(self) -> int:
        """Cluster time now; 0 as long as no coordinator was heard."""
        return 0 if self._offset_ms is None else int(self._offset_ms + time.monotonic() * 1000)


class Coordinators:
    """The cluster's coordinators as one thing to call."""

    def __init__(
        self,
        transport: Transport,
        urls: Sequence[str],
        token: str,
        token_again: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        """`urls` are base URLs, tried in this order; `Invalid` when there is none.

        `token_again` is asked when the token is refused: it may have been exchanged since (`Invalid`: it was not).
        """
        if not urls:
            raise Invalid("no coordinator is configured: name one in the profile or pass coordinators=[...]")
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise Invalid(f"the coordinator {url[:80]!r} is no http:// or https:// URL")
        self._headers = _headers(token)
        self._token_again = token_again
        self._transport = transport
        self._urls = [url.rstrip("/") for url in urls]
        self._current = 0
        self._backoff = Backoff()
        self._random = random.Random()
        self.clock = ClusterClock()

    async def call(
        self,
        verb: str,
        request: object,
        reply: type[T],
        *,
        deadline_s: float = CALL_DEADLINE_S,
        repeatable: bool = True,
    ) -> T:
        """Ask for `verb` until a coordinator answers, for at most `deadline_s`.

        A refused connection, a broken answer and a retryable error go to the next coordinator. `repeatable=False` is
        for verbs whose second run would do something else: a lost reply is then `OutcomeUnknown`.
        Raises the coordinator's error; `CatalogDown` after `CATALOG_PATIENCE_S` once all were asked; `NoSpace` at once.
        """
        started_s = time.monotonic()
        until_s = started_s + deadline_s
        body = msgspec.msgpack.encode(request)
        last: CopypoolError | None = None
        attempt = 0
        renewed = False
        while (left_s := until_s - time.monotonic()) > 0:
            asked, headers = self._current, self._headers
            try:
                return await self._call_once(verb, body, reply, min(left_s, self._transport.timeouts.rpc_answer_s))
            except LinkFailed as exc:
                if exc.sent and not repeatable:
                    raise OutcomeUnknown(f"the answer to {verb!r} was lost; see whether it was applied") from exc
                last = exc
            except NoSpace:
                raise
            except Unauthorized:
                if renewed or not await self._renewed(headers):
                    raise
                renewed = True
                continue
            except RetryLater as exc:
                # One coordinator may be cut off from etcd, and slow to say so: the others are asked before it is told.
                if isinstance(exc, CatalogDown) and attempt + 1 >= len(self._urls):
                    until_s = min(until_s, started_s + CATALOG_PATIENCE_S)
                last = exc
            # Calls that fail together leave that coordinator once, and do not go round and back to it.
            if self._current == asked:
                self._current += 1
            attempt += 1
            if attempt % len(self._urls) == 0:
                delay_s = self._backoff.delay_s(attempt // len(self._urls) - 1, self._random.random())
                if time.monotonic() + delay_s >= until_s:
                    break
                await asyncio.sleep(delay_s)
        raise call_error(last, verb, deadline_s) from last

    async def _renewed(self, refused: dict[str, str]) -> bool:
        """Whether there is another token now than the one that was refused; calls go on with it."""
        if self._headers is refused and self._token_again is not None:
            try:
                headers = _headers(await self._token_again())
            except Invalid as exc:
                log.warning("the token is refused, and cannot be read anew: %s", exc.message)
                return False
            if headers != refused and self._headers is refused:
                self._headers = headers
        return self._headers is not refused

    async def _call_once(self, verb: str, body: bytes, reply: type[T], answer_s: float) -> T:
        url = f"{self._urls[self._current % len(self._urls)]}/rpc/{verb}"
        answer = await self._transport.send("POST", url, headers=self._headers, data=body, answer_s=answer_s)
        try:
            return msgspec.msgpack.decode(answer.content, type=reply)
        except msgspec.MsgspecError as exc:
            raise BrokenInvariant(
                f"the answer of {url} to {verb!r} is no {reply.__name__}: {exc}; are client and cluster of one version?"
            ) from exc


def _headers(token: str) -> dict[str, str]:
    """Of every call; `Invalid` for what is no token."""
    if not token.isascii() or any(character.isspace() for character in token):
        raise Invalid("the token holds characters that no token has")
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
    return {"Authorization": f"Bearer {token}", **headers} if token else headers
