"""Names to file rows: concurrent lookups share etcd transactions of at most 128 gets, all linearizable.

A key is only ever joined to a transaction that has not been sent, so every caller gets a row that was current after
it asked. There is no cache: it could not be coherent. When etcd is away lookups fail at once: one transaction at
a time goes on asking, all others are answered from its failure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from copypool.protocol.api import LOOKUP_MAX
from copypool.protocol.errors import CatalogDown
from copypool_coordinator.batching import Batcher
from copypool_coordinator.directory import FileKey
from copypool_coordinator.rows import FileFlag, FileRow

Look = Callable[[Sequence[FileKey]], Awaitable[Sequence[FileRow | None]]]

#: A failure older than this is no reason to refuse without asking.
_DOWN_MEMORY_S = 2.0
#: The lookup that finds out whether etcd is back waits no longer than this.
_PROBE_S = 1.0
#: The mirror hears of the leader's clock every second; after this silence a lookup is given no more time than a probe.
_SILENT_S = 3.0
#: Time between two of them, in which nobody waits for etcd.
_PAUSE_S = 0.5


class Lookups:
    """The only way in which requests read the directory by name."""

    def __init__(
        self,
        look: Look,
        *,
        txns: int,
        queue: int,
        timeout_s: float,
        on_batch: Callable[[int], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        heard_s: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._look = look
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._heard_s = heard_s  #: monotonic time of the last sign of life of etcd
        self._down_until_s = 0.0
        self._refuse_until_s = 0.0
        self._probing = False
        self._batcher: Batcher[FileKey, FileRow | None] = Batcher(
            "lookup", self._txn, batch=LOOKUP_MAX, flying=txns, queue=queue, on_batch=on_batch, patient=True
        )

    @property
    def waiting(self) -> int:
        """Lookups that are not sent yet."""
        return self._batcher.waiting

    def submit(self, namespace: int, path: str, version: int = 0) -> asyncio.Future[FileRow | None]:
        """A future of the row, None for no such file or a deleted one; see `get`."""
        return self._batcher.submit(FileKey(namespace, path, version))

    async def get(self, namespace: int, path: str, version: int = 0) -> FileRow | None:
        """The row of the current version, or of `version`; None when there is no such file, or it is deleted.

        Raises:
            CatalogDown: etcd does not answer.
            Overloaded: too many lookups are waiting.
        """
        return await self._batcher.submit(FileKey(namespace, path, version))

    async def close(self) -> None:
        """End lookups under way."""
        await self._batcher.close()

    async def _txn(self, keys: Sequence[FileKey]) -> Sequence[FileRow | None]:
        if self._probing or self._monotonic() < self._refuse_until_s:
            raise CatalogDown("etcd does not answer: no file can be looked up by name until it does")
        probing = self._probing = self._monotonic() < self._down_until_s
        try:
            doubtful = probing or self._monotonic() - self._heard_s() > _SILENT_S
            async with asyncio.timeout(min(self._timeout_s, _PROBE_S) if doubtful else self._timeout_s):
                rows = await self._look(keys)
        except (CatalogDown, TimeoutError) as error:
            self._down_until_s = self._monotonic() + _DOWN_MEMORY_S
            self._refuse_until_s = self._monotonic() + _PAUSE_S
            if isinstance(error, CatalogDown):
                raise
            raise CatalogDown(f"etcd did not answer a lookup within {self._timeout_s} s") from error
        finally:
            if probing:
                self._probing = False
        self._down_until_s = 0.0
        return [None if row is not None and row.flags & FileFlag.tombstone else row for row in rows]
