"""Paging through a range of unknown density so that no page asks etcd to count much more than it returns.

Pure. etcd walks a whole range even under a limit, so paging [cursor, end) of a million rows costs as much as
counting them a thousand times over, and holds up every write meanwhile. Keys are read here as base-256 fractions:
each page asks for [cursor, cursor + step), and the step follows the density that the count of the page before shows.
"""

from __future__ import annotations

#: A page aims at this share of its limit, since density varies.
_FILL = 0.5
#: An empty or sparse page widens the step at most this much, so that a gap is crossed in a few pages.
_GROWTH_MAX = 64.0


class Pager:
    """Where the next page of [begin, end) begins and ends."""

    def __init__(self, begin: bytes, end: bytes, limit: int) -> None:
        if limit < 1 or not begin < end:
            raise ValueError(f"no page of {limit} rows in [{begin!r}, {end!r})")
        self._end = end
        self._limit = limit
        self._width = max(len(begin), len(end)) + 8
        self._step: int | None = None
        self.cursor = begin

    @property
    def done(self) -> bool:
        """Everything below the end was seen."""
        return self.cursor >= self._end

    @property
    def page_end(self) -> bytes:
        """The end of the page that begins at the cursor."""
        if self._step is None:
            return self._end
        number = self._number(self.cursor) + self._step
        if number >= self._number(self._end):
            return self._end
        end = number.to_bytes(self._width, "big").rstrip(b"\0")
        return end if end > self.cursor else self.cursor + b"\0"

    def advance(self, page_end: bytes, last_key: bytes | None, count: int, *, more: bool) -> None:
        """Note that [cursor, page_end) holds `count` rows, of which those up to `last_key` came."""
        step = max(1, self._number(page_end) - self._number(self.cursor))
        wanted = self._limit * _FILL
        self._step = max(1, int(step * min(_GROWTH_MAX, wanted / max(count, 1))))
        self.cursor = last_key + b"\0" if more and last_key is not None else page_end

    def _number(self, key: bytes) -> int:
        return int.from_bytes(key[: self._width].ljust(self._width, b"\0"), "big")
