"""Connections to the members of an etcd cluster: addresses, TLS, tokens, and which member is asked next.

One grpc channel per endpoint, so that the order in which members are tried is decided here and a failure can be
attributed to a member. A request is sent only over a connection that is known to be up: "never connected" is
then a fact, not a reading of an error text.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from copypool.tls import LOOK_S, TlsError, TlsFiles, client_context
from copypool_coordinator.etcd import wire

#: A member that does not take a connection within this time is passed over.
CONNECT_TIMEOUT_S = 1.0
#: Largest reply taken; a page or transaction stays far below it.
REPLY_MAX_BYTES = 64 << 20

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # etcd answers pings that come more often than every 5 s by closing the connection.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", REPLY_MAX_BYTES),
    ("grpc.max_send_message_length", 8 << 20),
]


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """Where etcd is and how to speak to it."""

    #: "host:port" with a DNS name, an IPv4 address or a bracketed IPv6 address; the first is preferred
    endpoints: tuple[str, ...]
    tls: TlsFiles | None = None
    user: str = ""
    password: str = ""
    #: deadline of a call, all attempts included
    timeout_s: float = 5.0
    #: renewed TLS files are in use after this time
    reload_s: float = LOOK_S

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("no etcd endpoint is given")
        for endpoint in self.endpoints:
            host, _, port = endpoint.rpartition(":")
            if not host or not port.isdigit() or "/" in host:
                raise ValueError(f"an etcd endpoint is host:port without a scheme, not {endpoint!r}")
        if self.timeout_s <= 0 or self.reload_s <= 0:
            raise ValueError("timeout_s and reload_s must be above 0")

    def __repr__(self) -> str:
        return f"EtcdSettings(endpoints={self.endpoints}, tls={self.tls is not None}, user={self.user!r})"


class _Line:
    """One channel to a member, with the credentials it was made with, and how many calls are on it."""

    def __init__(self, name: str, credentials: grpc.ChannelCredentials | None) -> None:
        target = f"dns:///{name}"
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
        self.credentials = credentials
        self.stubs = wire.Stubs(self._channel)
        self.calls = 0

    async def connected(self, timeout_s: float) -> bool:
        state = self._channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return bool(state is grpc.ChannelConnectivity.READY)

    async def first_connection(self) -> None:
        while (state := self._channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            await self._channel.wait_for_state_change(state)

    async def close(self) -> None:
        await self._channel.close()


class Endpoint:
    """One member: its channel and services.

    With renewed credentials it gets a new channel; calls on the one before end there, a watch perhaps months later.
    """

    def __init__(self, name: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.name = name
        self._line = _Line(name, credentials)
        self._before: list[_Line] = []

    @property
    def stubs(self) -> wire.Stubs:
        """The services; for the length of an `in_use` block."""
        return self._line.stubs

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The channel of now is not closed before the block ends, except with the whole client."""
        line = self._line
        line.calls += 1
        try:
            yield
        finally:
            line.calls -= 1

    async def connected(self, timeout_s: float) -> bool:
        """Whether a connection is up, waiting for one being made; False at once after a refusal."""
        with self.in_use():
            return await self._line.connected(timeout_s)

    async def first_connection(self) -> None:
        """Return once a connection is up, however long that takes."""
        with self.in_use():
            await self._line.first_connection()

    async def renew(self, credentials: grpc.ChannelCredentials) -> bool:
        """Make new calls with these credentials; False when the member takes only those of before.

        Nothing waits for it: calls go the old way until the new one is connected. Safe to repeat, not to overlap.
        """
        if self._line.credentials is not credentials:
            line = _Line(self.name, credentials)
            if not await line.connected(CONNECT_TIMEOUT_S) and await self._line.connected(0.0):
                await line.close()
                return False
            self._before.append(self._line)
            self._line = line
        for line in [line for line in self._before if not line.calls]:
            self._before.remove(line)
            await line.close()
        return True

    async def close(self) -> None:
        """Cancel what is under way and drop the connection."""
        await asyncio.gather(*(line.close() for line in [self._line, *self._before]))


class Token:
    """The token of the configured user; without a user there is none and none is ever taken."""

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._lock = asyncio.Lock()
        self.value = ""

    @property
    def wanted(self) -> bool:
        """A user is configured."""
        return bool(self._user)

    async def renew(self, endpoint: Endpoint, *, stale: str, timeout_s: float) -> None:
        """Take a new token unless somebody has replaced the `stale` one meanwhile.

        Raises:
            grpc.aio.AioRpcError: etcd did not answer, or refuses the user.
        """
        async with self._lock:
            if self.value != stale:
                return
            request = wire.authenticate_request(self._user, self._password)
            reply = await endpoint.stubs.auth.Authenticate(request, timeout=timeout_s)
            self.value = reply.token


class Members:
    """The endpoints in the order in which to try them; the one that served last stays first."""

    def __init__(self, endpoints: list[Endpoint]) -> None:
        self._endpoints = endpoints
        self._preferred = 0

    def __len__(self) -> int:
        return len(self._endpoints)

    def __iter__(self) -> Iterator[Endpoint]:
        """Every endpoint once, the preferred one first."""
        first = self._preferred
        return iter(self._endpoints[first:] + self._endpoints[:first])

    def pass_over(self, endpoint: Endpoint) -> None:
        """`endpoint` failed: if it is the preferred one, the next one is."""
        if self._endpoints[self._preferred] is endpoint:
            self._preferred = (self._preferred + 1) % len(self._endpoints)

    async def renew(self, credentials: grpc.ChannelCredentials) -> list[str]:
        """Use these credentials for new calls; the members that do not take them, where the old ones go on."""
        taken = await asyncio.gather(*(endpoint.renew(credentials) for endpoint in self._endpoints))
        return [endpoint.name for endpoint, good in zip(self._endpoints, taken, strict=True) if not good]

    async def close(self) -> None:
        """Close every channel."""
        await asyncio.gather(*(endpoint.close() for endpoint in self._endpoints))


def credentials_of(files: TlsFiles) -> grpc.ChannelCredentials:
    """Blocking: reads the PEM files. `TlsError` when they cannot be used; grpc itself would only fail to connect."""
    client_context(files)
    try:
        return grpc.ssl_channel_credentials(
            root_certificates=_content(files.authority),
            private_key=_content(files.key),
            certificate_chain=_content(files.certificate),
        )
    except OSError as exc:
        raise TlsError(f"cannot read {exc.filename}: {exc.strerror}") from exc


def _content(path: str) -> bytes | None:
    return Path(path).read_bytes() if path else None


@functools.cache
def _keep_grpc() -> None:
    """Keep grpc's poller thread for the life of the process.

    When its last channel goes, grpc joins that thread, from wherever the garbage is collected: in the event loop.
    """
    grpc.aio.init_grpc_aio()


def open_members(settings: EtcdSettings, credentials: grpc.ChannelCredentials | None) -> Members:
    """Channels to every endpoint; nothing is sent yet."""
    _keep_grpc()
    return Members([Endpoint(name, credentials) for name in settings.endpoints])
