"""Paging through a range of unknown density so that no page asks etcd to count much more than it returns.

Pure. etcd walks a whole range even under a limit, so paging [cursor, end) of a million rows costs as much as
counting them a thousand times over, and holds up every write meanwhile. Keys are read here as base-256 fractions:
each page asks for [cursor, cursor + step), and the step follows the density that the page before shows.
"""

from __future__ import annotations

#: An empty or sparse page widens the step at most this much, so that a gap is crossed in a few pages.
_GROWTH_MAX = 64
#: Keys are told apart by this many bytes beyond the bounds; later ones only make a page walk further.
_RESOLUTION_BYTES = 32


class Pager:
    """Where the next page of [begin, end) begins and ends."""

    def __init__(self, begin: bytes, end: bytes, limit: int) -> None:
        if limit < 1 or not begin < end:
            raise ValueError(f"no page of {limit} rows in [{begin!r}, {end!r})")
        self._end = end
        #: rows that a page aims at: half of its limit, since density varies
        self._aim = max(1, limit // 2)
        self._limit = limit
        self._width = max(len(begin), len(end)) + _RESOLUTION_BYTES
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
        """Note that [cursor, page_end) holds `count` rows, of which those up to `last_key` came (`more`: not all)."""
        begin = self._number(self.cursor)
        if more and last_key is not None:
            # The rows that came show the density here; the count would mix it with that of what lies beyond.
            self._step = (self._number(last_key) - begin) * self._aim // self._limit
            self.cursor = last_key + b"\0"
        else:
            width = self._number(page_end) - begin
            self._step = width * _GROWTH_MAX
            if count:
                self._step = min(self._step, width * self._aim // count)
            self.cursor = page_end
        self._step = max(1, self._step)

    def _number(self, key: bytes) -> int:
        return int.from_bytes(key[: self._width].ljust(self._width, b"\0"), "big")
