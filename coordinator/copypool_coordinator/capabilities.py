"""Minting and checking capabilities. Derived keys are kept, so that one costs one HMAC. No I/O, no clock.

The keys of node N under key number K derive from the cluster's master secret: every coordinator mints the same ones
and none is stored. Nodes hold the keys of the current number and of its neighbours, so that coordinators can be moved
to the next number one at a time.
"""

from __future__ import annotations

from functools import lru_cache

from copypool.protocol.api import PART_MAX_BYTES, SegmentRef
from copypool.protocol.capability import (
    APPEND_LIFE_MS,
    PULL_LIFE_MS,
    READ_LIFE_MS,
    WRITE_LIFE_MS,
    AppendCapability,
    NodeKeys,
    PullCapability,
    ReadCapability,
    WriteCapability,
    derive_key,
    derive_node_keys,
    open_capability,
    seal_capability,
)
from copypool.protocol.errors import Forbidden
from copypool.protocol.twins import TwinTarget

#: A body may be long under way: a commit accepts a capability that was valid this long ago.
COMMIT_SLACK_MS = 120_000
_NODES_MAX = 16_384


class Mint:
    """Makes capabilities for every node and checks those that nodes pass on."""

    def __init__(self, master: bytes, key_number: int) -> None:
        self.key_number = key_number
        self._numbers = tuple(number for number in (key_number, key_number - 1, key_number + 1) if number > 0)
        self._master = master
        # Per instance: a cache shared by instances would keep secrets of clusters that are gone.
        self._keys = lru_cache(_NODES_MAX)(self._derive)
        self._command = lru_cache(_NODES_MAX)(self._derive_command)
        self._credential = lru_cache(_NODES_MAX)(self._derive_credential)

    def _derive(self, node_id: int, number: int) -> NodeKeys:
        return derive_node_keys(self._master, node_id, number)

    def _derive_command(self, node_id: int) -> bytes:
        return derive_key(self._master, "command", node_id, 1)

    def _derive_credential(self, node_id: int) -> bytes:
        return derive_key(self._master, "credential", node_id, 1)

    def credential(self, node_id: int) -> bytes:
        """What this node shows to coordinators."""
        return self._credential(node_id)

    def command_key(self, node_id: int) -> bytes:
        """What a coordinator shows to this node."""
        return self._command(node_id)

    def keys_for(self, node_id: int) -> list[NodeKeys]:
        """Capability keys that this node holds, the current ones first."""
        return [self._keys(node_id, number) for number in self._numbers]

    def read(
        self,
        node_id: int,
        segment: SegmentRef,
        version: int,
        now_ms: int,
        *,
        raw: bool,
        header_bytes: int = 0,
        life_ms: int = READ_LIFE_MS,
    ) -> str:
        """The right to read one segment of one version at one node."""
        capability = ReadCapability(
            self.key_number,
            node_id,
            segment.extent,
            segment.offset,
            segment.length,
            version,
            now_ms + life_ms,
            raw,
            header_bytes,
        )
        return seal_capability(capability, self._keys(node_id, self.key_number))

    def write(
        self,
        node_id: int,
        volume: int,
        class_id: int,
        namespace: int,
        prefix: str,
        principal: str,
        now_ms: int,
        *,
        max_bytes: int = PART_MAX_BYTES,
        life_ms: int = WRITE_LIFE_MS,
        exact: bool = False,
    ) -> tuple[str, int]:
        """The right to put and delete under `prefix` (`exact`: at that one path) through one volume; when it ends."""
        expires_ms = now_ms + life_ms
        capability = WriteCapability(
            self.key_number, node_id, volume, class_id, namespace, prefix, max_bytes, expires_ms, principal, exact
        )
        return seal_capability(capability, self._keys(node_id, self.key_number)), expires_ms

    def pull(self, node_id: int, puller: int, extent: int, now_ms: int) -> str:
        """The right of node `puller` to read raw bytes of one extent at `node_id`."""
        capability = PullCapability(self.key_number, node_id, puller, extent, now_ms + PULL_LIFE_MS)
        return seal_capability(capability, self._keys(node_id, self.key_number))

    def append(self, twin: TwinTarget, writer: int, extent: int, now_ms: int) -> str:
        """The right of node `writer` to append to the twin of its new extent."""
        capability = AppendCapability(
            self.key_number,
            twin.node_id,
            writer,
            extent,
            twin.volume,
            twin.generation,
            now_ms + APPEND_LIFE_MS,
        )
        return seal_capability(capability, self._keys(twin.node_id, self.key_number))

    def open_write(self, text: str, node_id: int, now_ms: int) -> WriteCapability:
        """A write capability that node `node_id` passes on with a commit.

        It was valid when the client sent its body: `COMMIT_SLACK_MS` are allowed for the way. `Forbidden` otherwise.
        """
        keys = {number: self._keys(node_id, number) for number in self._numbers}
        capability = open_capability(text, keys, node_id, now_ms - COMMIT_SLACK_MS)
        if not isinstance(capability, WriteCapability):
            raise Forbidden("the capability does not allow writing")
        return capability
