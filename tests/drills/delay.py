"""A slow way in: takes connections at a port and passes them on to another one, late. Run inside a name space.

delay.py LISTEN UPSTREAM DELAY_MS JITTER_MS SEED. Prints `ready` once it listens; ends with SIGKILL or SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Callable

Opening = Callable[[], Awaitable[asyncio.StreamWriter]]

_PIECE_BYTES = 1 << 16
_AHEAD_PIECES = 64  #: on their way in one direction of one connection


async def late(
    reader: asyncio.StreamReader, to: Opening, delay_s: float, jitter_s: float, source: random.Random
) -> None:
    """Pass on what comes, each piece `delay_s` late; what is behind another piece is never before it.

    Where it goes `to` is opened when the first piece is due: a server must not wait for what is on its way.
    """
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_AHEAD_PIECES)

    async def take() -> None:
        while True:
            try:
                piece = await reader.read(_PIECE_BYTES)
            except OSError:  # reset: nothing more comes
                piece = b""
            await under_way.put((loop.time() + delay_s + source.uniform(-jitter_s, jitter_s), piece))
            if not piece:
                return

    taking = asyncio.create_task(take())
    writer: asyncio.StreamWriter | None = None
    try:
        while True:
            due_s, piece = await under_way.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            writer = writer or await to()
            if not piece:
                writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


async def main(listen: int, upstream: int, delay_s: float, jitter_s: float, seed: int) -> None:
    """Serve until killed."""
    source = random.Random(seed)

    async def accept(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        opened: list[asyncio.StreamWriter] = [to_client]
        answers: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()

        async def to_server() -> asyncio.StreamWriter:
            reader, writer = await asyncio.open_connection("127.0.0.1", upstream)
            opened.append(writer)
            answers.set_result(reader)
            return writer

        async def back() -> asyncio.StreamWriter:
            return to_client

        async def answer() -> None:
            await late(await answers, back, delay_s, jitter_s, source)

        answering = asyncio.create_task(answer())
        try:
            await asyncio.gather(late(client, to_server, delay_s, jitter_s, source), answering)
        except OSError:
            pass
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            for writer in opened:
                with contextlib.suppress(OSError):
                    writer.transport.abort()

    server = await asyncio.start_server(accept, "0.0.0.0", listen)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    port, target, delay_ms, jitter_ms, number = (int(argument) for argument in sys.argv[1:])
    asyncio.run(main(port, target, delay_ms / 1000, jitter_ms / 1000, number))
