"""Blocking work in a thread that is never left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from copypool.protocol.digests import digest_of

_HASH_INLINE_BYTES = 256 * 1024  #: larger bodies are hashed in a thread

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread. Cancelled, it first waits for the thread to finish.

    So whoever cleans up afterwards (closes the file, removes it) does not race with the thread that uses it.
    """
    running = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()
        raise


async def hash_body(data: bytes | bytearray | memoryview) -> bytes:
    """The digest of a body, off the loop when that takes long."""
    return digest_of(data) if len(data) <= _HASH_INLINE_BYTES else await asyncio.to_thread(digest_of, data)
