"""Standard input as an async iterator that Ctrl-C can leave."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError

_PIECE_BYTES = 1024 * 1024
_PIECES_AHEAD = 4


async def stdin_pieces(fd: int = 0) -> AsyncIterator[bytes]:
    """Pieces of standard input until its end, read ahead by a few.

    A daemon thread reads: a terminal or pipe that gives nothing must not keep the program from ending.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes | OSError] = asyncio.Queue(_PIECES_AHEAD)

    def read() -> None:
        item: bytes | OSError = b"?"
        while item and not isinstance(item, OSError):
            try:
                item = os.read(fd, _PIECE_BYTES)
            except OSError as exc:
                item = exc
            putting = pieces.put(item)
            try:
                asyncio.run_coroutine_threadsafe(putting, loop).result()
            except (RuntimeError, CancelledError):
                # The loop has ended: nobody waits for the rest.
                putting.close()
                return

    threading.Thread(target=read, name="copypool stdin", daemon=True).start()
    while True:
        item = await pieces.get()
        if isinstance(item, OSError):
            raise item
        if not item:
            return
        yield item
