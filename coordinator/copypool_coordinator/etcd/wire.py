"""Plain data to protobuf and back: the only place that imports the generated stubs.

The stubs are those inside etcd3aio (pinned to one exact version, because the module that holds them is private);
its client, channels and watch are not used. They carry no types, so what leaves this module is typed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from etcd3aio import _protobuf as pb

from copypool_coordinator.etcd.replies import EndpointStatus, KeyValue, RangeResult, TxnResult
from copypool_coordinator.etcd.requests import Compare, Get, Op, Put, Target

#: A protobuf message; opaque outside of this module.
Message: TypeAlias = Any
#: A generated stub; its methods take a message and return a grpc call.
Stub: TypeAlias = Any

_EQUAL = pb.Compare.CompareResult.Value("EQUAL")
_MOD = pb.Compare.CompareTarget.Value("MOD")
_CREATE = pb.Compare.CompareTarget.Value("CREATE")
_VALUE = pb.Compare.CompareTarget.Value("VALUE")
#: mvccpb.Event.EventType and etcdserverpb.AlarmType, which the pinned package does not export
_EVENT_DELETE = 1
_ALARM_NOSPACE = 1


class Stubs:
    """The services of one channel."""

    __slots__ = ("auth", "kv", "lease", "maintenance", "watch")

    def __init__(self, channel: Any) -> None:
        self.kv: Stub = pb.KVStub(channel)
        self.lease: Stub = pb.LeaseStub(channel)
        self.watch: Stub = pb.WatchStub(channel)
        self.auth: Stub = pb.AuthStub(channel)
        self.maintenance: Stub = pb.MaintenanceStub(channel)


def _add_compares(message: Message, compares: Sequence[Compare]) -> None:
    add = message.compare.add
    for target, key, revision, value in compares:
        if target is Target.MOD:
            add(result=_EQUAL, target=_MOD, key=key, mod_revision=revision)
        elif target is Target.CREATE:
            add(result=_EQUAL, target=_CREATE, key=key, create_revision=revision)
        else:
            add(result=_EQUAL, target=_VALUE, key=key, value=value)


def _add_operations(branch: Message, ops: Sequence[Op]) -> None:
    # Filled in place: building each message and handing it to its parent costs four times as much, and a group
    # lookup has 128 of them. Fields are set only where they differ from protobuf's defaults, for the same reason.
    add = branch.add
    for op in ops:
        if isinstance(op, Get):
            request = add().request_range
            request.key = op.key
            if op.end is not None:
                request.range_end = op.end
            if op.limit:
                request.limit = op.limit
            if op.keys_only:
                request.keys_only = True
        elif isinstance(op, Put):
            request = add().request_put
            request.key = op.key
            request.value = op.value
            if op.lease:
                request.lease = op.lease
        else:
            request = add().request_delete_range
            request.key = op.key
            if op.end is not None:
                request.range_end = op.end


def txn_request(compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> Message:
    """One transaction."""
    message = pb.TxnRequest()
    _add_compares(message, compares)
    _add_operations(message.success, success)
    _add_operations(message.failure, failure)
    return message


def _rows(kvs: Message) -> tuple[KeyValue, ...]:
    return tuple([KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in kvs])


def txn_result(reply: Message, branch: Sequence[Op]) -> TxnResult:
    """The result of a transaction whose `branch` ran."""
    responses: list[tuple[KeyValue, ...]] = [()] * len(branch)
    for index, (op, response) in enumerate(zip(branch, reply.responses, strict=True)):
        if isinstance(op, Get):
            responses[index] = _rows(response.response_range.kvs)
    return TxnResult(reply.succeeded, reply.header.revision, responses)


def range_request(
    key: bytes, end: bytes | None, *, limit: int, keys_only: bool, serializable: bool, revision: int
) -> Message:
    """One row, or one page of [key, end)."""
    return pb.RangeRequest(
        key=key,
        range_end=end or b"",
        limit=limit,
        keys_only=keys_only,
        serializable=serializable,
        revision=revision,
    )


def range_result(reply: Message) -> RangeResult:
    """The rows of a range reply."""
    return RangeResult(_rows(reply.kvs), reply.more, reply.header.revision, reply.count)


def lease_grant_request(ttl_s: int) -> Message:
    """A new lease with an id of etcd's choosing."""
    return pb.LeaseGrantRequest(TTL=ttl_s)


def lease_revoke_request(lease_id: int) -> Message:
    """The end of a lease and of its rows."""
    return pb.LeaseRevokeRequest(ID=lease_id)


def lease_keep_alive_request(lease_id: int) -> Message:
    """One renewal."""
    return pb.LeaseKeepAliveRequest(ID=lease_id)


def compaction_request(revision: int) -> Message:
    """Forget history below `revision`; the space is freed later."""
    return pb.CompactionRequest(revision=revision)


def status_request() -> Message:
    """What a member says of itself."""
    return pb.StatusRequest()


def alarms_request() -> Message:
    """The alarms that are raised in the cluster, read through consensus."""
    return pb.AlarmRequest()


def no_space_alarm(reply: Message) -> bool:
    """Whether an alarm reply holds a NOSPACE alarm of any member."""
    return any(member.alarm == _ALARM_NOSPACE for member in reply.alarms)


def authenticate_request(user: str, password: str) -> Message:
    """A token for a user."""
    return pb.AuthenticateRequest(name=user, password=password)


def watch_request(key: bytes, end: bytes, start_revision: int) -> Message:
    """All changes of [key, end) from `start_revision` on; large revisions arrive in fragments."""
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(key=key, range_end=end, start_revision=start_revision, fragment=True)
    )


def watch_events(reply: Message) -> list[tuple[bool, KeyValue]]:
    """The events of a watch reply in revision order, each with whether it is a delete."""
    events = []
    for event in reply.events:
        kv = event.kv
        row = KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
        events.append((event.type == _EVENT_DELETE, row))
    return events


def endpoint_status(name: str, reply: Message) -> EndpointStatus:
    """A member's status reply."""
    return EndpointStatus(
        endpoint=name,
        version=reply.version,
        db_size_bytes=reply.dbSize,
        db_in_use_bytes=reply.dbSizeInUse,
        is_leader=reply.leader == reply.header.member_id,
        revision=reply.header.revision,
        raft_term=reply.raftTerm,
        alarms=tuple(reply.errors),
    )
