"""Content of small files that was read a moment ago, by its digest. Pure.

A name is looked up in etcd on every request; what its row says the content is cannot change, so bytes found under the
row's digest are that content whoever wrote it, wherever it lies, and however old this entry is. There is nothing to
invalidate, and nobody gets here who was not let through to the row.
"""

from __future__ import annotations

from collections import OrderedDict

#: Longer files are not kept: one of them would put out hundreds of others, and their node call is a smaller share.
ENTRY_MAX_BYTES = 64 * 1024
#: What an entry takes besides its bytes, about.
_ENTRY_BYTES = 300


class Kept:
    """The entries used last, of at most `max_bytes` together; 0: none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self.size_bytes = 0  #: taken now, overhead included

    def get(self, digest: bytes) -> bytes | None:
        """The content with this digest, if it is here."""
        found = self._entries.get(digest)
        if found is not None:
            self._entries.move_to_end(digest)
        return found

    def add(self, digest: bytes, content: bytes) -> None:
        """Keep content whose digest was checked; what was used longest ago makes room."""
        cost = len(content) + _ENTRY_BYTES
        if len(content) > ENTRY_MAX_BYTES or cost > self._max_bytes or digest in self._entries:
            return
        self._entries[digest] = content
        self.size_bytes += cost
        while self.size_bytes > self._max_bytes:
            _, gone = self._entries.popitem(last=False)
            self.size_bytes -= len(gone) + _ENTRY_BYTES
