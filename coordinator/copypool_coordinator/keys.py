"""Every key in etcd. Pure.

    /cp/c/...   cluster state, mirrored in every coordinator by one watch
        p/<pool>  ns/<namespace>  cl/<class>  n/<node>  v/<volume>    rows by name, each holds its integer id
        s/<node id>           session of a node (leased); its mod revision is the node's epoch
        k/<coordinator>       session of a coordinator (leased)
        e/<extent>            class, writer, locations, and the sealed length
        b/<ns id>/<path>      fence: one path in 1,024, so that listings can bound their ranges
        t/<sha256 of token>   u/<coordinator> counters   x/<process>   id/<kind> next free integer
        clock  leader  format  cluster
    /cp/o/<extent>            open extents: committed length; written by commits alone, never watched
    /cp/d/...   directory, never watched
        f/<ns id>/<path>      current version or tombstone
        h/<ns id>/<path>\\0<version>   older versions, 8 bytes big-endian
        m/<ns id>/<upload>    guard row of an upload; m/<ns id>/<upload>/<number> its parts
        z/<time>/<ns id>/<path>        tombstone rows by time, for the sweep
    /cp/l/<id>                event log

`o/` stands outside `/cp/c/` so that the watch is one range. Rows that people name are keyed by name: uniqueness is one
compare. Integer ids inside keys are fixed-width hex, so that byte order is numeric order.
"""

from __future__ import annotations

import hashlib

ROOT = b"/cp/"
CLUSTER = b"/cp/c/"
CLUSTER_END = b"/cp/c0"
OPEN = b"/cp/o/"
OPEN_END = b"/cp/o0"
EVENTS = b"/cp/l/"
EVENTS_END = b"/cp/l0"

POOL, NAMESPACE, CLASS, NODE, VOLUME = b"p/", b"ns/", b"cl/", b"n/", b"v/"
SESSION, COORDINATOR, EXTENT, FENCE = b"s/", b"k/", b"e/", b"b/"
TOKEN, COUNTERS, PROCESS, NEXT_ID = b"t/", b"u/", b"x/", b"id/"

CLOCK = CLUSTER + b"clock"
LEADER = CLUSTER + b"leader"
FORMAT = CLUSTER + b"format"
CLUSTER_ROW = CLUSTER + b"cluster"

_FILE, _OLD, _UPLOAD, _TOMBSTONE = b"/cp/d/f/", b"/cp/d/h/", b"/cp/d/m/", b"/cp/d/z/"
FENCE_EVERY = 1024


def named(kind: bytes, name: str) -> bytes:
    """Row of a named thing: pool, namespace, class, node, volume, coordinator, counter, process."""
    return CLUSTER + kind + name.encode()


def session(node_id: int) -> bytes:
    """Session row of a node."""
    return CLUSTER + SESSION + b"%08x" % node_id


def extent(extent_id: int) -> bytes:
    """Row of an extent."""
    return CLUSTER + EXTENT + b"%016x" % extent_id


def open_extent(extent_id: int) -> bytes:
    """Commit row of an open extent."""
    return OPEN + b"%016x" % extent_id


def token(sha256: bytes) -> bytes:
    """Row of a client token."""
    return CLUSTER + TOKEN + sha256.hex().encode()


def fence(namespace: int, path: str) -> bytes:
    """Fence row of a path."""
    return CLUSTER + FENCE + b"%08x/" % namespace + path.encode()


def is_fence(path: str) -> bool:
    """Whether creating this path also writes a fence row: one path in 1,024, by its hash."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=4).digest(), "big") % FENCE_EVERY == 0


def file(namespace: int, path: str) -> bytes:
    """Row of a file's current version."""
    return _FILE + b"%08x/" % namespace + path.encode()


def file_prefix(namespace: int) -> bytes:
    """Start of all file rows of a namespace; the path follows."""
    return _FILE + b"%08x/" % namespace


def file_end(namespace: int) -> bytes:
    """End of all file rows of a namespace."""
    return _FILE + b"%08x0" % namespace


def old_version(namespace: int, path: str, version: int) -> bytes:
    """Row of an older version; NUL cannot occur in a path, so `a` and `a/1` never mix."""
    return _OLD + b"%08x/" % namespace + path.encode() + b"\0" + version.to_bytes(8, "big")


def old_versions(namespace: int, path: str) -> tuple[bytes, bytes]:
    """Range of all older versions of a path, oldest first."""
    start = _OLD + b"%08x/" % namespace + path.encode()
    return start + b"\0", start + b"\1"


def upload(namespace: int, upload_id: bytes) -> bytes:
    """Guard row of an upload."""
    return _UPLOAD + b"%08x/" % namespace + upload_id.hex().encode()


def uploads_prefix(namespace: int) -> bytes:
    """Start of all rows of a namespace's uploads; `<upload>` or `<upload>/<number>` follows."""
    return _UPLOAD + b"%08x/" % namespace


def part(namespace: int, upload_id: bytes, number: int) -> bytes:
    """Row of one part of an upload."""
    return upload(namespace, upload_id) + b"/%08x" % number


def tombstone(time_ms: int, namespace: int, path: str) -> bytes:
    """Index row that lets the sweep find a tombstone after its time."""
    return _TOMBSTONE + b"%012x/%08x/" % (time_ms, namespace) + path.encode()


def tombstone_of(key: bytes) -> tuple[int, str]:
    """Namespace and path of a tombstone index row."""
    _time, namespace, path = key[len(_TOMBSTONE) :].split(b"/", 2)
    return int(namespace, 16), path.decode()


def tombstone_ms(key: bytes) -> int:
    """Time of a tombstone index row."""
    return int(key[len(_TOMBSTONE) :].partition(b"/")[0], 16)


def tombstones_until(time_ms: int) -> tuple[bytes, bytes]:
    """Range of tombstone index rows written before this time."""
    return _TOMBSTONE, _TOMBSTONE + b"%012x/" % time_ms
