"""What a failed call to etcd means, above all: does it *prove* that a transaction was not applied?

Pure. A transaction is sent at most once unless the failure proves that etcd did nothing (`NOT_APPLIED`); all
else is `UNKNOWN`, also where etcd's own text sounds like a refusal. The proofs, from etcd's source (3.4 to 3.6):

- "no leader": answered by the interceptor before the handler runs, since every call carries `hasleader`.
- "too many requests", "request is too large", "invalid auth token": checked before the proposal is made.
- "raft proposal dropped": the member's own raft refused it; a forwarded proposal that a leader drops has no
  such answer, it times out.
- "not capable", "rpc not supported for learner": interceptors.
- argument errors, "permission denied", "revision of auth store is old", "requested lease not found": checked
  before the first operation is applied, on every member alike.
- "failed to connect to all addresses": grpc never had a connection to send on.

These prove nothing: "request timed out" in all its forms, "server stopped", "leader changed" (the proposal may be in
the log), a lost connection, a passed deadline, and **"database space exceeded"**: the member whose quota is crossed
while it applies a transaction *applies it* and then answers NOSPACE. Only once the alarm is known to be raised
is NOSPACE a refusal, because from then on every member refuses puts before applying them.
"""

from __future__ import annotations

from enum import Enum

from copypool.protocol.errors import CatalogDown


class RevisionGone(CatalogDown):
    """A read at a revision that the store does not hold (any more): read the present and start again."""


class Failure(Enum):
    """What is known after a failed call."""

    #: etcd did nothing; trying again, elsewhere too, is safe
    NOT_APPLIED = "not_applied"
    #: etcd did nothing, because the token is not good (any more): take a new one, then try again
    TOKEN = "token"
    #: the space quota is exceeded; not a proof by itself
    NO_SPACE = "no_space"
    #: the lease named in the request does not exist; nothing was applied
    NO_LEASE = "no_lease"
    #: the revision asked for is compacted; nothing was applied
    COMPACTED = "compacted"
    #: the revision asked for is above the store's: the store went back, or the caller invents revisions
    FUTURE = "future"
    #: etcd refuses this user or these credentials; nothing was applied
    FORBIDDEN = "forbidden"
    #: the request breaks etcd's rules whoever sends it: a bug on this side; nothing was applied
    MISUSE = "misuse"
    #: nothing is known: a read may be tried again, a transaction may not
    UNKNOWN = "unknown"


_BY_TEXT: dict[str, Failure] = {
    "etcdserver: no leader": Failure.NOT_APPLIED,
    "etcdserver: too many requests": Failure.NOT_APPLIED,
    "etcdserver: not capable": Failure.NOT_APPLIED,
    "etcdserver: rpc not supported for learner": Failure.NOT_APPLIED,
    "raft proposal dropped": Failure.NOT_APPLIED,
    "etcdserver: invalid auth token": Failure.TOKEN,
    "etcdserver: revision of auth store is old": Failure.TOKEN,
    "etcdserver: user name is empty": Failure.TOKEN,
    "etcdserver: mvcc: database space exceeded": Failure.NO_SPACE,
    "etcdserver: requested lease not found": Failure.NO_LEASE,
    "etcdserver: mvcc: required revision has been compacted": Failure.COMPACTED,
    "etcdserver: permission denied": Failure.FORBIDDEN,
    "etcdserver: authentication failed, invalid user ID or password": Failure.FORBIDDEN,
    "etcdserver: authentication is not enabled": Failure.FORBIDDEN,
    "etcdserver: request is too large": Failure.MISUSE,
    "etcdserver: too many operations in txn request": Failure.MISUSE,
    "etcdserver: duplicate key given in txn request": Failure.MISUSE,
    "etcdserver: key is not provided": Failure.MISUSE,
    "etcdserver: mvcc: required revision is a future revision": Failure.FUTURE,
    "etcdserver: too large lease TTL": Failure.MISUSE,
}

_NEVER_CONNECTED = ("failed to connect to all addresses", "DNS resolution failed")


def judge(code: str, details: str) -> Failure:
    """The meaning of a grpc status: `code` is its name ("UNAVAILABLE"), `details` etcd's or grpc's sentence."""
    known = _BY_TEXT.get(details)
    if known is not None:
        return known
    if code == "UNAVAILABLE" and details.startswith(_NEVER_CONNECTED):
        return Failure.NOT_APPLIED
    return Failure.UNKNOWN
