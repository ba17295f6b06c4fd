"""The node's calls to coordinators: one sticky choice, failover, deadlines, and what a lost reply means.

Every internal request is safe to repeat as it is (see `protocol.internal`), through any coordinator. So a call tries
coordinators in turn until one gives a definite answer or the deadline passes. Definite are: success, and every error
that is not about reaching or waiting. When the deadline passes and an attempt may have been received, the caller gets
`OutcomeUnknown`, else the last refusal. aiohttp's exceptions end here.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import aiohttp
import msgspec

from copypool.protocol.errors import (
    CatalogDown,
    CopypoolError,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    from_response,
)
from copypool.protocol.internal import Done
from copypool.protocol.routes import MSGPACK, TRACE
from copypool.telemetry import tracing

T = TypeVar("T", bound=msgspec.Struct)

CONNECT_S = 1.0
ATTEMPT_S = 5.0
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 1.0
#: For how long an answer that etcd is away counts, unless a call succeeds before. Who waits for it asks more often.
CATALOG_AWAY_S = 8.0
#: Who may give a call up waits this long for etcd: an election passes, an outage is told.
CATALOG_PATIENCE_S = 1.0

#: Errors after which the same request may be sent again elsewhere: nothing was decided.
_UNDECIDED = (CatalogDown, NotLeader, Overloaded, OutcomeUnknown)


def is_definite(error: CopypoolError) -> bool:
    """Whether this answer settles the request; else it is repeated as it is.

    That a twin is not there (`claim` of a commit, `twin` of an open) is for the caller to decide about.
    """
    if type(error) is Unavailable:
        return "claim" in error.details or "twin" in error.details
    return not isinstance(error, _UNDECIDED)


class _Lost(Exception):
    """An attempt without an answer; `sent`: a coordinator may have got it."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class CoordinatorLink:
    """Calls `/n/*`. Safe for concurrent use within one event loop."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        tls: ssl.SSLContext | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._configured = [url.rstrip("/") for url in urls]
        self._urls = list(self._configured)
        self._sticky = 0
        self._tls = tls
        self._rng = rng or random.Random()
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._encoder = msgspec.msgpack.Encoder()
        self._away = ""
        self._away_s = float("-inf")
        self.authorization = ""  #: value of the header, set once the node has joined

    @property
    def urls(self) -> list[str]:
        """The coordinators known now, the preferred one first."""
        return self._urls[self._sticky :] + self._urls[: self._sticky]

    @property
    def catalog_away(self) -> str:
        """Why the catalog is taken to be away, as a coordinator said a moment ago; "" while calls succeed."""
        return self._away if time.monotonic() - self._away_s < CATALOG_AWAY_S else ""

    def learn(self, urls: Sequence[str]) -> None:
        """Take over the list of a reply, keeping the preferred one; the configured ones stay as a last resort."""
        preferred = self._urls[self._sticky]
        merged = list(dict.fromkeys([url.rstrip("/") for url in urls] + self._configured))
        self._urls = merged
        self._sticky = merged.index(preferred) if preferred in merged else 0

    async def call(
        self,
        verb: str,
        request: msgspec.Struct,
        reply: type[T],
        *,
        deadline_s: float = 10.0,
        give_up: Callable[[], bool] | None = None,
        authorization: str = "",
        final: bool = True,
        catalog_patience_s: float = float("inf"),
    ) -> T:
        """Send until there is a definite answer; see the module. `deadline_s` bounds the whole call.

        `give_up` is asked before each repeat: True ends the call as if the deadline had passed. With `final` False an
        error after an attempt whose answer was lost does not settle the request (the first attempt may have been
        applied, and be the reason for the error): that is `OutcomeUnknown` too.

        `CatalogDown` is raised when etcd has been away for `catalog_patience_s`, or at the end, and every attempt has
        been refused for sure: nothing was applied, and nothing of this call can be applied any more.
        """
        body = self._encoder.encode(request)
        header = authorization or self.authorization
        deadline = time.monotonic() + deadline_s
        backoff_s = BACKOFF_MIN_S
        maybe_received = False
        failure = "no coordinator was asked"
        tries = 0
        away: CatalogDown | None = None
        patient_until = deadline
        while True:
            url = self._urls[self._sticky % len(self._urls)]
            try:
                answer = await self._attempt(url, verb, body, reply, header, deadline - time.monotonic())
                self._away = ""
                return answer
            except _Lost as exc:
                maybe_received = maybe_received or exc.sent
                failure = str(exc)
            except CopypoolError as exc:
                if is_definite(exc):
                    if maybe_received and not final:
                        raise OutcomeUnknown(f"{verb}: an answer was lost, and a repeat met: {exc.message}") from exc
                    raise
                maybe_received = maybe_received or isinstance(exc, OutcomeUnknown)
                failure = f"{url}: {exc.message}"
                if isinstance(exc, CatalogDown | OutcomeUnknown):
                    self._away, self._away_s = exc.message, time.monotonic()
                if isinstance(exc, CatalogDown):
                    if away is None:
                        patient_until = min(deadline, time.monotonic() + catalog_patience_s)
                    away = exc
            self._sticky = (self._sticky + 1) % len(self._urls)
            tries += 1
            if tries % len(self._urls) == 0:
                pause_s = backoff_s * self._rng.uniform(0.5, 1.0)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
            else:
                pause_s = 0.0
            if away is not None and not maybe_received and time.monotonic() + pause_s >= patient_until:
                raise CatalogDown(away.message) from away
            if time.monotonic() + pause_s >= deadline or self._closed or (give_up is not None and give_up()):
                if maybe_received:
                    raise OutcomeUnknown(f"{verb}: no coordinator answered in time; last: {failure}")
                raise Unavailable(f"{verb}: no coordinator could do it in time; last: {failure}")
            await asyncio.sleep(pause_s)

    async def ask(
        self, url: str, verb: str, request: msgspec.Struct, reply: type[T], *, deadline_s: float = ATTEMPT_S
    ) -> T:
        """One attempt at one coordinator; `Unavailable` when it gives no answer."""
        try:
            return await self._attempt(url, verb, self._encoder.encode(request), reply, self.authorization, deadline_s)
        except _Lost as exc:
            raise Unavailable(str(exc)) from exc

    async def _attempt(self, url: str, verb: str, body: bytes, reply: type[T], header: str, left_s: float) -> T:
        timeout = aiohttp.ClientTimeout(total=max(0.05, min(ATTEMPT_S, left_s)), sock_connect=CONNECT_S)
        try:
            async with self._http().post(
                f"{url}/n/{verb}",
                data=body,
                headers={
                    "Authorization": header,
                    "Content-Type": MSGPACK,
                    "Accept": MSGPACK,
                    TRACE: tracing.outgoing(),
                },
                timeout=timeout,
            ) as response:
                content = await response.read()
                if response.status >= 400:
                    raise from_response(response.status, content, response.content_type)
        except aiohttp.ClientConnectorError as exc:
            raise _Lost(f"{url} cannot be reached: {exc}", sent=False) from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise _Lost(f"{url} gave no answer: {str(exc) or type(exc).__name__}", sent=True) from exc
        if reply is Done:
            return reply()  # nothing to say; the status says it all
        try:
            return msgspec.msgpack.decode(content, type=reply)
        except msgspec.MsgspecError as exc:
            raise _Lost(f"{url} answered {verb} with something else: {exc}", sent=True) from exc

    def _http(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Unavailable("this node is ending")
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=64, ssl=self._tls if self._tls is not None else True)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session

    @property
    def http(self) -> aiohttp.ClientSession:
        """The shared client session; also used for pulls from peers. `Unavailable` after `close`."""
        return self._http()

    async def close(self) -> None:
        """Close all connections, for good. Calls under way fail, and so does every later one."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
