"""Samples of the open extents' committed lengths, which are not watched: one bounded read a second at most."""

from __future__ import annotations

import asyncio
import time

from copypool_coordinator.catalog import Catalog
from copypool_coordinator.rows import OpenRow

#: A sample this young is used again.
FRESH_S = 1.0


class OpenSample:
    """The commit rows of all open extents of the view, shared by everything in this process that wants them."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = asyncio.Lock()
        self._taken_s = -FRESH_S
        self.rows: dict[int, OpenRow] = {}

    async def refresh(self, max_age_s: float = FRESH_S) -> dict[int, OpenRow]:
        """The rows as of at most `max_age_s` before the call. An extent that was sealed meanwhile is left out.

        Calls that wait for one another share a read that began after all of them were made.

        Raises:
            CatalogDown: etcd does not answer; `rows` keeps the last sample.
        """
        asked_s = time.monotonic()
        async with self._lock:
            if self._taken_s < asked_s - max_age_s:
                began_s = time.monotonic()
                opened = await self._catalog.read_open(self._catalog.view.open_extents())
                self.rows = {extent: each.row for extent, each in opened.items()}
                self._taken_s = began_s
            return self.rows
