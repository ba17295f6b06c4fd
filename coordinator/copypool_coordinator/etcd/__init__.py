"""The door to etcd: transactions, bounded ranges, leases and a mirror that never loses an event.

Everything in the project that speaks to etcd goes through this package, and nothing else imports grpc or
etcd3aio, so that the client below can be exchanged without touching a caller. It knows keys and values as bytes
and has no idea what they mean.

    requests.py  what can be asked: compares and operations, as plain data
    replies.py   what comes back: rows, results, mirror events
    verdicts.py  which failures prove that a transaction was not applied (pure)
    versions.py  which etcd versions are refused (pure)
    channels.py  connections, TLS, tokens, and the order in which endpoints are tried
    wire.py      plain data <-> protobuf; the one place that imports the generated stubs
    door.py      `Etcd`: one method per call
    listing.py   paging through a range with bounded ends (pure)
    mirror.py    list, then watch, for ever
"""

from copypool_coordinator.etcd.channels import EtcdSettings
from copypool_coordinator.etcd.door import Etcd
from copypool_coordinator.etcd.replies import (
    Changed,
    EndpointStatus,
    KeyValue,
    Listed,
    MirrorEvent,
    RangeResult,
    TxnResult,
)
from copypool_coordinator.etcd.requests import (
    Compare,
    Op,
    create_equals,
    delete,
    get,
    mod_equals,
    put,
    value_equals,
)
from copypool_coordinator.etcd.versions import VersionVerdict, check_version

__all__ = [
    "Changed",
    "Compare",
    "EndpointStatus",
    "Etcd",
    "EtcdSettings",
    "KeyValue",
    "Listed",
    "MirrorEvent",
    "Op",
    "RangeResult",
    "TxnResult",
    "VersionVerdict",
    "check_version",
    "create_equals",
    "delete",
    "get",
    "mod_equals",
    "put",
    "value_equals",
]
