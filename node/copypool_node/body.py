"""Request bodies as they come in: bounded, with a stall deadline, in one piece or stripe by stripe.

A body that ends early, stalls, or is longer than allowed raises before anything of it counts. aiohttp's exceptions
about bodies end here.
"""

from __future__ import annotations

import asyncio

from aiohttp import ClientError
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import BaseRequest

from copypool.protocol.errors import Invalid, TooLarge
from copypool.protocol.stripes import STRIPE_BYTES


def content_length(request: BaseRequest) -> int | None:
    """The stated length of the body; None: chunked, so not known before its end."""
    return request.content_length if request.can_read_body or request.content_length is not None else 0


class Body:
    """One request's body. Read by one task."""

    def __init__(self, request: BaseRequest, *, max_bytes: int, stall_s: float) -> None:
        self.length = content_length(request)
        if self.length is not None and self.length > max_bytes:
            raise TooLarge(f"the body is {self.length} bytes; the limit here is {max_bytes}")
        self.received = 0
        self._request = request
        self._content = request.content
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._ready: list[bytes] = []  #: received, not yet handed out
        self._ready_bytes = 0
        self._ended = self.length == 0

    async def begin(self) -> None:
        """Invite a client that waits for `100 Continue`. Call once, when the request is worth its body."""
        if self._request.headers.get("Expect", "").lower() == "100-continue":
            await self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._request.writer.output_size = 0

    def limit(self, max_bytes: int) -> None:
        """Lower the limit of a body whose length is not known."""
        self._max_bytes = min(self._max_bytes, max_bytes)
        if self.received > self._max_bytes:
            raise TooLarge(f"the body is longer than {self._max_bytes} bytes, the limit here")

    async def read_up_to(self, limit: int) -> bytes | None:
        """The whole body if it has at most `limit` bytes; None when it has more (what came stays for `stripe`)."""
        if self.length is not None and self.length > limit:
            return None
        await self._fill(limit + 1)
        if self._ready_bytes > limit:
            return None
        chunks, self._ready, self._ready_bytes = self._ready, [], 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def stripe(self) -> tuple[list[bytes], bool]:
        """The next stripe's payload, in chunks as it came, and whether it is the last.

        Called until the last, on a body that is not empty.
        """
        await self._fill(STRIPE_BYTES + (1 if self.length is None else 0))
        surplus = self._ready_bytes - STRIPE_BYTES
        taken, self._ready, self._ready_bytes = self._ready, [], 0
        if surplus > 0:
            # Only the last chunk goes beyond.
            last = taken.pop()
            taken.append(last[: len(last) - surplus])
            self._ready, self._ready_bytes = [last[len(last) - surplus :]], surplus
        return taken, self._ended and not self._ready

    async def _fill(self, wanted: int) -> None:
        """Receive until this many bytes are ready or the body ends."""
        if self._ended or self._ready_bytes >= wanted:
            return
        loop = asyncio.get_running_loop()
        try:
            if self._content.is_eof():  # all of it is here already: the usual case of a small body
                self._take(self._content.read_nowait())
                self._end()
                return
            async with asyncio.timeout(self._stall_s) as stall:
                while self._ready_bytes < wanted:
                    chunk = await self._content.readany()
                    if not chunk:
                        self._end()
                        return
                    if self._take(chunk):
                        return
                    stall.reschedule(loop.time() + self._stall_s)
        except TimeoutError as exc:
            raise Invalid(f"the body brought nothing for {self._stall_s:.0f} s after {self.received} bytes") from exc
        except (ClientError, HttpProcessingError, ConnectionError, RuntimeError) as exc:
            raise Invalid(f"the body broke off after {self.received} bytes: {exc}") from exc

    def _take(self, chunk: bytes) -> bool:
        """Keep a chunk; whether it was the last one of a body of known length."""
        self.received += len(chunk)
        if self.received > self._max_bytes:
            raise TooLarge(f"the body is longer than {self._max_bytes} bytes, the limit here")
        self._ready.append(chunk)
        self._ready_bytes += len(chunk)
        self._ended = self.received == self.length
        return self._ended

    def _end(self) -> None:
        if self.length is not None and self.received != self.length:
            raise Invalid(f"the body ended after {self.received} of {self.length} bytes")
        self._ended = True
