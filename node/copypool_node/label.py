"""The label of a volume: whose it is, which claim on it is the newest, how new a catalog it has seen. Pure.

A volume is claimed before it is used: the label says `epoch = confirmed + 1` and a nonce, durably, before the catalog
compares; the catalog's answer is then noted as `confirmed`. A clone of the disk, or a disk rolled back to an earlier
state, repeats an epoch that the catalog has passed, and is refused. A claim that was not confirmed is made again with
the same epoch and nonce, so a node that dies while it mounts neither runs ahead of the catalog nor looks like a clone.
"""

from __future__ import annotations

import struct

import msgspec

from copypool.protocol.api import PoolType
from copypool.protocol.errors import Conflict
from copypool.protocol.stripes import checksum
from copypool_node.format import Corrupt

LABEL_MAGIC = b"CPLB"
LABEL_FORMAT = 1
LABEL_MAX_BYTES = 4096
_HEAD = struct.Struct("<4sII")  #: magic, format number, bytes of msgpack


class VolumeRefused(Conflict):
    """This directory must not be used as that volume; nothing in it was changed. An operator has to look."""


class SafeMode(VolumeRefused):
    """The catalog is not the one, or older than the one, that this volume belongs to: nothing may be deleted."""


class Label(msgspec.Struct, array_like=True, frozen=True):
    """Contents of the file `label`."""

    cluster_id: bytes  #: 16 bytes
    uuid: bytes  #: 16 random bytes, once for ever
    name: str
    pool: str
    pool_type: PoolType
    epoch: int = 0  #: of the newest claim
    nonce: bytes = b""  #: 16 random bytes of that claim
    confirmed: int = 0  #: the epoch that the catalog accepted last; epoch or epoch - 1
    revision: int = 0  #: highest catalog revision seen

    def claimed(self, nonce: bytes) -> Label:
        """The label with a claim on it: a new one, or the one that was not confirmed yet."""
        if self.epoch > self.confirmed:
            return self
        return msgspec.structs.replace(self, epoch=self.confirmed + 1, nonce=nonce)

    def mounted(self, revision: int) -> Label:
        """The label once the catalog has accepted the claim."""
        return msgspec.structs.replace(self, confirmed=self.epoch, revision=max(self.revision, revision))

    def raised(self, revision: int) -> Label:
        """The label of a volume that has seen this catalog revision."""
        return msgspec.structs.replace(self, revision=max(self.revision, revision))

    def check_owner(self, cluster_id: bytes, name: str, pool: str, pool_type: PoolType) -> None:
        """Raise unless this is the volume that the configuration means: `SafeMode` for another cluster's."""
        if self.cluster_id != cluster_id:
            raise SafeMode(
                f"volume {name}: its label is of cluster {self.cluster_id.hex()}, this is cluster {cluster_id.hex()}: "
                "the node is configured for another cluster's disk, or talks to another cluster's coordinators"
            )
        for what, labelled, wanted in (
            ("name", self.name, name),
            ("pool", self.pool, pool),
            ("pool type", self.pool_type, pool_type),
        ):
            if labelled != wanted:
                raise VolumeRefused(f"volume {name}: its label says {what} {labelled!r}, the configuration {wanted!r}")

    def check_revision(self, catalog_revision: int) -> None:
        """Raise `SafeMode` unless the catalog is at least as new as the newest that the volume has seen."""
        if catalog_revision < self.revision:
            raise SafeMode(f"it has seen catalog revision {self.revision}, this catalog is at {catalog_revision}")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Label)


def encode_label(label: Label) -> bytes:
    """The whole contents of the file."""
    meta = _encoder.encode(label)
    body = _HEAD.pack(LABEL_MAGIC, LABEL_FORMAT, len(meta)) + meta
    return body + checksum(body, 0, 0).to_bytes(4, "little")


CONFIGURATION_MAGIC = b"CPCF"
CONFIGURATION_FORMAT = 1
CONFIGURATION_MAX_BYTES = 16 * 1024 * 1024
_CONFIGURATION_HEAD = struct.Struct("<4sIQI")  #: magic, format number, catalog revision, bytes of content


def encode_configuration(revision: int, content: bytes) -> bytes:
    """The whole contents of the file `configuration`: the cluster's configuration as of a catalog revision."""
    body = _CONFIGURATION_HEAD.pack(CONFIGURATION_MAGIC, CONFIGURATION_FORMAT, revision, len(content)) + content
    return body + checksum(body, 0, 0).to_bytes(4, "little")


def decode_configuration(data: bytes) -> tuple[int, bytes]:
    """Check the file; its catalog revision and content. `Corrupt` when it is not a whole one."""
    if len(data) < _CONFIGURATION_HEAD.size + 4 or data[:4] != CONFIGURATION_MAGIC:
        raise Corrupt(0, "not a configuration")
    _magic, number, revision, size = _CONFIGURATION_HEAD.unpack_from(data)
    if number != CONFIGURATION_FORMAT:
        raise Corrupt(0, f"configuration format {number}; this program reads format {CONFIGURATION_FORMAT}")
    if len(data) != _CONFIGURATION_HEAD.size + size + 4:
        raise Corrupt(0, f"a configuration of {len(data)} bytes with {size} bytes of content")
    if checksum(data[:-4], 0, 0) != int.from_bytes(data[-4:], "little"):
        raise Corrupt(0, "the checksum of the configuration does not match")
    return revision, data[_CONFIGURATION_HEAD.size : -4]


def decode_label(data: bytes) -> Label:
    """Check and decode the file; `Corrupt` when it is not a whole label."""
    if len(data) < _HEAD.size + 4 or data[:4] != LABEL_MAGIC:
        raise Corrupt(0, "not a volume label")
    _magic, number, meta_bytes = _HEAD.unpack_from(data)
    if number != LABEL_FORMAT:
        raise Corrupt(0, f"label format {number}; this program reads format {LABEL_FORMAT}")
    if len(data) != _HEAD.size + meta_bytes + 4:
        raise Corrupt(0, f"a label of {len(data)} bytes with {meta_bytes} bytes of meta")
    if checksum(data[:-4], 0, 0) != int.from_bytes(data[-4:], "little"):
        raise Corrupt(0, "the checksum of the label does not match")
    try:
        return _decoder.decode(data[_HEAD.size : -4])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Corrupt(0, f"the label does not decode: {exc}") from exc
