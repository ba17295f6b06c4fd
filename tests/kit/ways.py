"""A port answers simple requests without aiohttp (`serving.shortcut`) and all others with it: how tests choose."""

from __future__ import annotations

#: A header that the short way does not know: the request, and what follows on its connection, go the long way.
LONG_WAY = {"TE": "trailers"}
#: Bodies up to this size are sent in one piece with their head, as clients do, which the short way needs.
ONE_PIECE_BYTES = 64 * 1024
