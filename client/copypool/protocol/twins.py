"""What a writer and the twin of its open extent say to each other (ack rule `copy`). Structs only; always msgpack.

POST /i/append/<extent>?offset=&sync= with an append capability: the body is raw bytes of the extent file from `offset`
on. The twin appends at exactly its current end; bytes that it has already must match; it never leaves a hole. With
`sync=1` everything up to the answer's length is checked, fsync'd and may be claimed in a commit, under the answer's
epoch. Repeating an append as it is, is safe. After any error the twin has ended: it takes no more appends.
"""

from __future__ import annotations

import msgspec

#: One append: a group, or a stripe with what stands around it.
APPEND_MAX_BYTES = 16 * 1024 * 1024


class TwinTarget(msgspec.Struct, array_like=True):
    """Where the twin of a new extent is. Its row exists; its file comes to be by the first append, at offset 0."""

    node_id: int
    node: str
    url: str
    volume: int
    volume_name: str
    generation: int
    capability: str


class AppendReply(msgspec.Struct, array_like=True):
    """The twin's answer."""

    epoch: int  #: of the twin's session: a commit that claims these bytes compares it
    length: int  #: the twin holds the extent up to here; with `sync` fsync'd and checked
