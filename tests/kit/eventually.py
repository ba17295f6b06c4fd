"""Waiting in tests: ask again until it is so, or fail at a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

DEADLINE_S = 60.0
POLL_S = 0.01


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], what: str, *, within_s: float = DEADLINE_S
) -> None:
    """Return once `condition` holds.

    Raises:
        AssertionError: it did not, within `within_s`; `what` is named.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        holds = condition()
        if not isinstance(holds, bool):
            holds = await holds
        if holds:
            return
        assert loop.time() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(POLL_S)
