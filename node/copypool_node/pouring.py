"""Long bodies on their way out: read, checked and sent piece by piece on a thread of the volume, slice after slice.

A thread goes on as long as the client takes what it sends. One that is slower costs no thread: what it has not taken
waits on the loop. A piece that cannot be read, or fails its checksum, ends the slice; it is asked for in the ordinary
way, which knows what to do about it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

from copypool.direct_socket import DirectSocket
from copypool.protocol.errors import CopypoolError
from copypool_node.disk import Disk
from copypool_node.extent_file import ExtentFile

Piece = TypeVar("Piece")

SLICE_PIECES = 16  #: of at most CHUNK_BYTES each: a slice of 4 MiB holds a thread for a millisecond or two
PATIENCE_S = 0.005  #: a slice waits for its client so long at most
POURED_MIN_BYTES = 1024 * 1024  #: less than this is sent in the ordinary way
LOOK_S = 1.0  #: a wait for a client looks this often whether the connection is still there
TAKING_MAX_S = 300.0  #: a client that takes not one byte for so long is given up


class Body(Protocol[Piece]):
    """What is sent."""

    pieces: Iterator[Piece]  #: those that were not sent yet

    @property
    def file(self) -> ExtentFile:
        """Where pieces are read from as long as nothing is wrong with it."""
        ...

    async def load(self, piece: Piece) -> bytes | memoryview:
        """A piece in the ordinary way, fit to be sent; whatever else can be tried for it is tried."""
        ...

    def load_now(self, disk: Disk, fd: int, piece: Piece, room: memoryview) -> memoryview:
        """A piece, fit to be sent, read into `room` of `room_bytes`. Blocks; on one thread at a time."""
        ...

    @property
    def room_bytes(self) -> int:
        """Of the largest piece, with all that is read for it."""
        ...


class _Poured(NamedTuple):
    """What became of a slice."""

    done: int  #: pieces that the client has, but for `rest`
    rest: memoryview  #: of the last of them
    failed: bool  #: the next piece could not be had


async def pour(
    body: Body[Piece],
    outlet: DirectSocket,
    ordinary: Callable[[bytes | memoryview], Awaitable[None]],
    gone: Callable[[], bool],
) -> None:
    """Send all pieces of `body`; nothing must wait in the transport.

    `ordinary` sends bytes through the transport and returns when the socket has them. Raises `ConnectionError` when the
    client has `gone`, and what `Body.load` raises: the answer is incomplete then. Safe to cancel.
    """
    ahead: deque[Piece] = deque()
    patience_s = PATIENCE_S
    while not gone():
        ahead.extend(islice(body.pieces, SLICE_PIECES - len(ahead)))
        if not ahead:
            return
        try:
            poured = await body.file.lend(partial(_pour_slice, body, list(ahead), outlet, patience_s))
        except CopypoolError:
            poured = _Poured(0, memoryview(b""), failed=True)
        for _ in range(poured.done):
            ahead.popleft()
        patience_s = 0.0 if poured.rest else PATIENCE_S
        await _finish(outlet, poured.rest, gone)
        if poured.failed:
            await ordinary(await body.load(ahead.popleft()))
    raise ConnectionResetError("the client has gone")


def _pour_slice(
    body: Body[Piece], pieces: Sequence[Piece], outlet: DirectSocket, patience_s: float, disk: Disk, fd: int
) -> _Poured:
    """On a thread. `ConnectionError`: the client has gone."""
    nothing = memoryview(b"")
    with outlet.held() as held:
        if not held:
            return _Poured(0, nothing, failed=False)
        until_s = time.monotonic() + patience_s
        room = memoryview(bytearray(body.room_bytes))
        for done, piece in enumerate(pieces):
            try:
                data = body.load_now(disk, fd, piece, room)
            except CopypoolError:
                return _Poured(done, nothing, failed=True)
            taken = _send(outlet, data, until_s)
            if taken < len(data):
                return _Poured(done + 1, data[taken:], failed=False)
    return _Poured(len(pieces), nothing, failed=False)


async def _finish(outlet: DirectSocket, rest: memoryview, gone: Callable[[], bool]) -> None:
    """Send what a thread could not, as the client takes it; `ConnectionError` when it takes nothing any more."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + TAKING_MAX_S
    while rest:
        taken = _send(outlet, rest)
        if taken:
            rest = rest[taken:]
            deadline_s = loop.time() + TAKING_MAX_S
        elif gone() or loop.time() >= deadline_s:
            raise ConnectionResetError("the client has gone, or takes nothing any more")
        else:
            await outlet.writable(LOOK_S)


def _send(outlet: DirectSocket, data: memoryview, until_s: float = 0.0) -> int:
    try:
        return outlet.send(data, until_s)
    except ConnectionError:
        raise
    except OSError as exc:
        raise ConnectionResetError(f"the connection broke: {exc}") from exc
