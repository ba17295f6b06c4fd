"""`Etcd`: one method per thing that can be asked of etcd."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence

import grpc
import grpc.aio

from copypool.protocol.errors import CatalogDown, Fenced, NoSpace, OutcomeUnknown
from copypool.tls import Rotated
from copypool_coordinator.etcd import wire
from copypool_coordinator.etcd.attempts import Attempts, Metadata, Repeat, Send
from copypool_coordinator.etcd.channels import (
    CONNECT_TIMEOUT_S,
    Endpoint,
    EtcdSettings,
    Token,
    credentials_of,
    open_members,
)
from copypool_coordinator.etcd.mirror import Mirror
from copypool_coordinator.etcd.replies import EndpointStatus, KeyValue, MirrorEvent, RangeResult, TxnResult
from copypool_coordinator.etcd.requests import TXN_MAX_OPS, Compare, Get, Op, Put, bounded, get
from copypool_coordinator.etcd.verdicts import Failure, RevisionGone, judge

log = logging.getLogger(__name__)

#: Refuse leases that would end before a slow renewal arrives.
LEASE_MIN_S = 2
#: How long a member is asked why it took no connection: grpc answers at once while it waits for the next try.
WHY_TIMEOUT_S = 0.5


class Etcd:
    """A client of one etcd cluster, safe for any number of tasks of one event loop.

    Every method has a deadline (`timeout_s` of the settings, attempts on other members included) and may be
    cancelled; a cancelled transaction may still be applied. `CatalogDown` always means that nothing was changed.
    """

    def __init__(self, settings: EtcdSettings, attempts: Attempts) -> None:
        self._settings = settings
        self._attempts = attempts
        self._members = attempts.members
        #: a NOSPACE answer was seen, and no look at the alarms since has shown that they are off
        self._maybe_full = False
        #: the TLS files, how often they were taken over, and when the certificate expires
        self.tls: Rotated[grpc.ChannelCredentials] | None = None
        self._following: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, settings: EtcdSettings) -> Etcd:
        """A client with a connection to one member at least, logged in where a user is configured.

        Raises:
            CatalogDown: no member could be reached within the timeout, or the user is refused.
            TlsError: the TLS files cannot be used.
        """
        files = settings.tls
        tls = await asyncio.to_thread(Rotated, files, credentials_of) if files is not None else None
        members = open_members(settings, tls.value if tls is not None else None)
        attempts = Attempts(members, Token(settings.user, settings.password), settings.timeout_s)
        etcd = cls(settings, attempts)
        if tls is not None:
            etcd.tls = tls
            etcd._following = asyncio.create_task(etcd._follow_files(tls))
        try:
            await etcd._await_connection(settings.timeout_s)
            await attempts.run("login", _STATUS, Repeat.SAFE)
        except BaseException:
            await etcd.close()
            raise
        return etcd

    @property
    def away(self) -> str:
        """Why etcd is taken to be away, from the last request that nobody answered; "" while it answers."""
        return self._attempts.away

    async def close(self) -> None:
        """End every connection; calls under way fail. Safe to repeat."""
        self._attempts.closed = True
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._members.close()

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Op],
        failure: Sequence[Op] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        """Run `success` if every compare holds, else `failure`; atomically, and at most once.

        When it returns, the effect is committed by a quorum, and every later read sees it. At most 128 compares,
        128 operations a branch and 1.5 MiB; a branch may not write a key twice, nor put into a range it deletes.

        Raises:
            CatalogDown: it was **not** applied; it may be repeated.
            OutcomeUnknown: it may have been applied or still be: read, do not repeat.
            NoSpace: etcd's quota is exceeded; it was not applied.
            Fenced: a lease that it puts under is gone; it was not applied.
            BrokenInvariant: it breaks one of the limits above; it was not applied.
        """
        if not success and not failure:
            raise ValueError("a transaction without operations reads nothing, and etcd answers it from stale state")
        if len(compares) > TXN_MAX_OPS or len(success) > TXN_MAX_OPS or len(failure) > TXN_MAX_OPS:
            raise ValueError(f"more than {TXN_MAX_OPS} compares or operations in a transaction")
        request = wire.txn_request(compares, success, failure)
        reads_only = all(isinstance(op, Get) for op in success) and all(isinstance(op, Get) for op in failure)
        if reads_only:
            reply = await self._attempts.run("a lookup", _txn(request), Repeat.SAFE, timeout_s=timeout_s)
        else:
            puts = any(isinstance(op, Put) for op in success) or any(isinstance(op, Put) for op in failure)
            reply = await self._write(request, puts=puts, timeout_s=timeout_s)
        return wire.txn_result(reply, success if reply.succeeded else failure)

    async def _write(self, request: wire.Message, *, puts: bool, timeout_s: float | None) -> wire.Message:
        """Send a transaction that changes something.

        A first NOSPACE does not prove that the transaction was not applied (see `verdicts`), so it is unknown. From
        then on nothing with a put is sent before etcd, asked through consensus, says that no alarm is raised.
        """
        alarmed = self._maybe_full and puts and await self._alarmed()
        if alarmed:
            raise NoSpace("etcd's space quota is exceeded: nothing can be written until it is freed and disarmed")
        try:
            return await self._attempts.run("a transaction", _txn(request), Repeat.NEVER, timeout_s=timeout_s)
        except NoSpace as error:
            self._maybe_full = True
            raise OutcomeUnknown(
                f"etcd may have applied the transaction that exceeded its quota: {error.message}", no_space=True
            ) from error

    async def _alarmed(self) -> bool:
        reply = await self._attempts.run("a look at the alarms", _ALARMS, Repeat.SAFE)
        self._maybe_full = wire.no_space_alarm(reply)
        return self._maybe_full

    async def get(self, key: bytes) -> KeyValue | None:
        """The row at `key` as of now (linearizable), or None.

        Raises:
            CatalogDown: no member answered in time.
        """
        request = wire.range_request(key, None, limit=1, keys_only=False, serializable=False, revision=0)
        reply = wire.range_result(await self._attempts.run("a read", _range(request), Repeat.SAFE))
        return reply.rows[0] if reply.rows else None

    async def range(
        self,
        key: bytes,
        end: bytes,
        *,
        limit: int = 0,
        keys_only: bool = False,
        serializable: bool = False,
        revision: int = 0,
    ) -> RangeResult:
        """At most `limit` (0: all) rows of [key, end) in key order, as of now or of `revision`.

        etcd walks and counts all of [key, end) even under a limit: choose the end close. `serializable` reads what
        one member knows, which may be old.

        Raises:
            CatalogDown: no member answered in time.
            RevisionGone: `revision` is compacted or in the future.
        """
        request = wire.range_request(
            key,
            bounded(key, end),
            limit=limit,
            keys_only=keys_only,
            serializable=serializable,
            revision=revision,
        )
        return wire.range_result(await self._attempts.run("a range", _range(request), Repeat.SAFE))

    async def lease_grant(self, ttl_s: int) -> int:
        """A new lease that ends `ttl_s` after its last renewal. A lost reply leaves one that ends by itself.

        Raises:
            CatalogDown: no member answered in time.
            NoSpace: etcd's quota is exceeded.
        """
        if ttl_s < LEASE_MIN_S:
            raise ValueError(f"a lease of {ttl_s} s is too short: at least {LEASE_MIN_S} s")
        request = wire.lease_grant_request(ttl_s)

        send = _unary(lambda stubs: stubs.lease.LeaseGrant, request)
        return int((await self._attempts.run("a lease", send, Repeat.SAFE)).ID)

    async def lease_keep_alive(self, lease_id: int) -> int:
        """Renew a lease once; the seconds it has left, 0 when it is gone.

        Raises:
            CatalogDown: no member answered in time; the lease may or may not have been renewed.
        """
        request = wire.lease_keep_alive_request(lease_id)

        async def send(endpoint: Endpoint, timeout_s: float, metadata: Metadata) -> wire.Message:
            call = endpoint.stubs.lease.LeaseKeepAlive(timeout=timeout_s, metadata=metadata)
            try:
                await call.write(request)
                return await call.read()
            finally:
                call.cancel()

        try:
            reply = await self._attempts.run("a renewal", send, Repeat.SAFE)
        except Fenced:
            return 0
        return 0 if reply is grpc.aio.EOF else max(0, int(reply.TTL))

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete its rows. Safe to repeat; a lease that is gone is no error.

        Raises:
            CatalogDown: no member answered in time; it may be revoked nevertheless.
        """
        request = wire.lease_revoke_request(lease_id)
        send = _unary(lambda stubs: stubs.lease.LeaseRevoke, request)
        try:
            await self._attempts.run("a revocation", send, Repeat.SAFE)
        except Fenced:
            return  # the lease is gone, as asked

    async def compact(self, revision: int) -> None:
        """Forget history below `revision`. Safe to repeat; a revision that is compacted already is no error.

        Raises:
            CatalogDown: no member answered in time; it may be compacted nevertheless.
        """
        request = wire.compaction_request(revision)
        send = _unary(lambda stubs: stubs.kv.Compact, request)
        try:
            await self._attempts.run("a compaction", send, Repeat.SAFE)
        except RevisionGone as error:
            if not error.details["compacted"]:
                raise

    async def status(self) -> list[EndpointStatus]:
        """What every endpoint says of itself, in the order of the settings; one that fails has `error` set."""
        members = sorted(self._members, key=lambda endpoint: self._settings.endpoints.index(endpoint.name))
        return list(await asyncio.gather(*(self._status_of(endpoint) for endpoint in members)))

    async def with_smaller_transactions(self) -> list[str]:
        """Endpoints that refuse transactions of `TXN_MAX_OPS` operations; those that give no answer are left out."""
        members = sorted(self._members, key=lambda endpoint: endpoint.name)
        asked = await asyncio.gather(*(self._refuses_large(endpoint) for endpoint in members))
        return [endpoint.name for endpoint, refuses in zip(members, asked, strict=True) if refuses]

    async def _refuses_large(self, endpoint: Endpoint) -> bool:
        timeout_s = self._settings.timeout_s
        if not await endpoint.connected(min(CONNECT_TIMEOUT_S, timeout_s)):
            return False
        request = wire.txn_request([], [get(b"\0")] * TXN_MAX_OPS, [])  # what it reads is of no interest
        try:
            with endpoint.in_use():
                await _txn(request)(endpoint, timeout_s, self._attempts.metadata())
        except grpc.aio.AioRpcError as error:
            return judge(error.code().name, error.details() or "") is Failure.MISUSE
        return False

    async def _status_of(self, endpoint: Endpoint) -> EndpointStatus:
        timeout_s = self._settings.timeout_s
        if not await endpoint.connected(min(CONNECT_TIMEOUT_S, timeout_s)):
            return EndpointStatus(endpoint.name, error="takes no connection")
        try:
            with endpoint.in_use():
                reply = await _STATUS(endpoint, timeout_s, self._attempts.metadata())
            return wire.endpoint_status(endpoint.name, reply)
        except grpc.aio.AioRpcError as error:
            return EndpointStatus(endpoint.name, error=error.details() or error.code().name)

    def mirror(
        self,
        prefix_ranges: Sequence[tuple[bytes, bytes]],
        *,
        page: int = 1000,
        silence_s: float = 3.0,
        on_trouble: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[MirrorEvent, None]:
        """List the ranges, then follow their changes for ever; see `Mirror` for what is guaranteed.

        Close it (`contextlib.aclosing`) when done: it holds a stream open. It never raises `CatalogDown`; it goes on
        trying, and `on_trouble` is told each time that it has to.
        """
        return Mirror(self, self._attempts, prefix_ranges, page, silence_s, on_trouble).events()

    async def _follow_files(self, tls: Rotated[grpc.ChannelCredentials]) -> None:
        """Make new connections with renewed TLS files; those that are open stay."""
        refused: list[str] = []
        while True:
            await asyncio.sleep(self._settings.reload_s)
            try:
                await asyncio.to_thread(tls.look, time.time())
                before, refused = refused, await self._members.renew(tls.value)
            except Exception:
                log.exception("new channels to etcd failed by a bug; those of before stay in use")
                continue
            if refused and refused != before:
                log.error("etcd %s takes only the TLS files of before; those stay in use", ", ".join(refused))

    async def _await_connection(self, timeout_s: float) -> None:
        """Wait until one member takes a connection."""
        waits = [asyncio.ensure_future(endpoint.first_connection()) for endpoint in self._members]
        try:
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if not done:
            names = ", ".join(self._settings.endpoints)
            reasons = await asyncio.gather(*(self._why_unreachable(endpoint) for endpoint in self._members))
            why = next((f": {reason}" for reason in reasons if reason), "")
            raise CatalogDown(f"no etcd member takes a connection within {timeout_s} s: {names}{why}")

    async def _why_unreachable(self, endpoint: Endpoint) -> str:
        """What grpc says of its last try: a refused connection, a certificate; "" when it says nothing."""
        try:
            with endpoint.in_use():
                await _STATUS(endpoint, WHY_TIMEOUT_S, self._attempts.metadata())
        except grpc.aio.AioRpcError as error:
            return (error.details() or "") if error.code() is grpc.StatusCode.UNAVAILABLE else ""
        return ""


def _unary(method: Callable[[wire.Stubs], wire.Stub], request: wire.Message) -> Send:
    async def send(endpoint: Endpoint, timeout_s: float, metadata: Metadata) -> wire.Message:
        return await method(endpoint.stubs)(request, timeout=timeout_s, metadata=metadata)

    return send


_STATUS = _unary(lambda stubs: stubs.maintenance.Status, wire.status_request())
_ALARMS = _unary(lambda stubs: stubs.maintenance.Alarm, wire.alarms_request())


def _txn(request: wire.Message) -> Send:
    return _unary(lambda stubs: stubs.kv.Txn, request)


def _range(request: wire.Message) -> Send:
    return _unary(lambda stubs: stubs.kv.Range, request)
