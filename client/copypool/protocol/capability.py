"""Capabilities: what a coordinator allows a client, or a pulling node, to do at one node for a short time.

Wire form: base64url(msgpack array + HMAC-SHA256). The key is derived per node and per purpose, so a broken node
cannot mint for another one and a read capability is no write capability. Times are cluster time in milliseconds.
Nothing here does I/O; the verifier passes the time in.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Literal

import msgspec

from copypool.protocol.errors import Forbidden
from copypool.protocol.names import in_scope

READ_LIFE_MS = 300_000
WRITE_LIFE_MS = 60_000
REDIRECT_LIFE_MS = 60_000
PULL_LIFE_MS = 600_000
#: An extent may be open for long. The right reaches one file, and only bytes that a commit names ever count.
APPEND_LIFE_MS = 24 * 3_600_000
_MAC_BYTES = 32

Purpose = Literal[
    "capability-read", "capability-write", "capability-pull", "capability-append", "credential", "command"
]


def derive_key(master: bytes, purpose: Purpose, node_id: int, key_number: int) -> bytes:
    """The 32-byte key of one node for one purpose. `master` is the cluster's secret of >= 32 bytes.

    `credential` proves a node to the coordinators, `command` a coordinator to that node.
    """
    label = f"copypool/{purpose}/{node_id}/{key_number}".encode()
    return hmac.new(master, label, hashlib.sha256).digest()


class NodeKeys(msgspec.Struct, frozen=True, array_like=True):
    """One node's capability keys under one key number; two key numbers are valid at a time."""

    number: int
    read: bytes
    write: bytes
    pull: bytes
    append: bytes = b""


def derive_node_keys(master: bytes, node_id: int, key_number: int) -> NodeKeys:
    """All capability keys that a node receives when it registers."""
    return NodeKeys(
        key_number,
        derive_key(master, "capability-read", node_id, key_number),
        derive_key(master, "capability-write", node_id, key_number),
        derive_key(master, "capability-pull", node_id, key_number),
        derive_key(master, "capability-append", node_id, key_number),
    )


class ReadCapability(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """May read payload [0, length) of the segment at (extent, offset), which belongs to `version`."""

    key_number: int
    node_id: int
    extent: int
    offset: int
    length: int
    version: int
    expires_ms: int
    raw: bool = False  #: the holder verifies checksums itself; else the node does before bytes leave it
    header_bytes: int = 0  #: > 0: may also read the record header that ends where the segment begins


class WriteCapability(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    """May put and delete files of one namespace under `prefix` through one volume of one node, in one class."""

    key_number: int
    node_id: int
    volume: int
    class_id: int
    namespace: int
    prefix: str
    max_bytes: int  #: of one body
    expires_ms: int
    principal: str = ""  #: name of the token, for the event log
    exact: bool = False  #: `prefix` is the one path that may be written, not what lies below it (redirects)


class PullCapability(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """Lets node `puller` read raw bytes of one extent from node `node_id`."""

    key_number: int
    node_id: int
    puller: int
    extent: int
    expires_ms: int


class AppendCapability(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """Lets node `writer` append its groups to one new location, its twin, on a volume of node `node_id`."""

    key_number: int
    node_id: int
    writer: int
    extent: int
    volume: int
    generation: int
    expires_ms: int


Capability = ReadCapability | WriteCapability | PullCapability | AppendCapability
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Capability)


def _key_for(keys: NodeKeys, capability: Capability) -> bytes:
    match capability:
        case ReadCapability():
            return keys.read
        case WriteCapability():
            return keys.write
        case PullCapability():
            return keys.pull
        case AppendCapability():
            return keys.append


def seal_capability(capability: Capability, keys: NodeKeys) -> str:
    """The wire form, signed with the keys of the node that will check it."""
    body = _encoder.encode(capability)
    mac = hmac.digest(_key_for(keys, capability), body, "sha256")
    return urlsafe_b64encode(body + mac).decode("ascii")


def open_capability(text: str, keys: Mapping[int, NodeKeys], node_id: int, now_ms: int) -> Capability:
    """Check signature, node and expiry and return the capability; `Forbidden` says which check failed."""
    try:
        raw = urlsafe_b64decode(text)
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        capability: Capability = _decoder.decode(body)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as exc:
        raise Forbidden("the capability is malformed: ask a coordinator for a new one") from exc
    known = keys.get(capability.key_number)
    if (
        known is None
        or not _key_for(known, capability)
        or not hmac.compare_digest(hmac.digest(_key_for(known, capability), body, "sha256"), mac)
    ):
        raise Forbidden("the capability's signature is not valid at this node: ask a coordinator for a new one")
    if capability.node_id != node_id:
        raise Forbidden("the capability is for another node")
    if capability.expires_ms < now_ms:
        raise Forbidden("the capability has expired: ask a coordinator for a new one", expired=True)
    return capability


def check_write(capability: Capability, namespace: int, path: str, size_bytes: int) -> WriteCapability:
    """The capability as one that allows writing `size_bytes` to this path; `Forbidden` otherwise."""
    if not isinstance(capability, WriteCapability):
        raise Forbidden("this capability does not allow writing")
    if capability.namespace != namespace or not in_scope(path, capability.prefix):
        raise Forbidden("the capability does not cover this path")
    if capability.exact and path != capability.prefix:
        raise Forbidden("the capability does not cover this path")
    if size_bytes > capability.max_bytes:
        raise Forbidden(f"the capability allows bodies of up to {capability.max_bytes} bytes")
    return capability
