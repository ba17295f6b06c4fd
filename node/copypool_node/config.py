"""Settings of one storage node: a TOML file, overridden by `COPYPOOL_NODE_*`. Unknown keys are errors.

Every limit is here with its unit, so that an operator finds all of them in one place.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from copypool.protocol.api import PoolType
from copypool.protocol.errors import CopypoolError, Invalid
from copypool.protocol.internal import EXTENT_SOFT_BYTES
from copypool.protocol.names import check_name
from copypool.telemetry.logs import LogFormat

ENVIRONMENT_PREFIX = "COPYPOOL_NODE_"

LogLevel = Literal["debug", "info", "warning", "error"]


class VolumeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """One labelled directory."""

    path: str
    name: str
    pool: str
    pool_type: PoolType
    reserve_bytes: int | None = None  #: kept free for tombstones and repair; None: the volume's own rule


class TlsConfig(msgspec.Struct, forbid_unknown_fields=True):
    """PEM files. The same certificate serves and, as a client, identifies this node to others."""

    cert_file: str
    key_file: str
    ca_file: str


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    """Bounds of queues, waits and rates."""

    queue_records: int = 8192  #: records waiting for a group, per volume and class
    queue_bytes: int = 64 * 1024 * 1024  #: their payload, per volume and class
    commit_wait_s: float = 10.0  #: a writer waits this long for its outcome
    extent_soft_bytes: int = EXTENT_SOFT_BYTES  #: an extent this long takes no further group
    idle_seal_s: float = 600.0  #: an open extent that got nothing for this long is sealed
    streams_per_class: int = 8  #: open extents that long bodies may hold at a time, per volume and class
    stream_wait_s: float = 5.0  #: a long body waits this long for an extent of its own
    body_stall_s: float = 30.0  #: a body that brings no byte for this long is given up
    heartbeat_s: float = 3.0
    probe_max_age_s: float = 10.0  #: a volume whose last good write + fsync is older takes no writes
    #: The catalog's revision on a volume's label is at most this old: it tells a catalog that went back.
    label_revision_s: float = 10.0
    pulls_per_volume: int = 4
    pull_bytes_s: int = 0  #: bandwidth of all pulls together; 0: no limit
    verify_bytes_s: int = 64 * 1024 * 1024  #: paced reading per volume; 0: no limit
    commands_queued: int = 10_000  #: pulls or verifies waiting, each
    scanners_kept: int = 64  #: open extents that a pull can follow without reading them again
    twin_timeout_s: float = 2.0  #: a twin that takes longer for a group or a stripe has ended
    twins_open: int = 256  #: extents of other nodes that this one may be the twin of at a time
    connections: int = 4096  #: of clients and peers at a time; one more is cut off at once
    shutdown_s: float = 5.0  #: at SIGTERM, groups under way get this long


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The whole configuration file."""

    name: str
    coordinators: list[str]
    state_dir: str
    volumes: list[VolumeConfig]
    listen_host: str = "127.0.0.1"
    listen_port: int = 7400
    advertise_url: str = ""  #: how others reach this node; empty: made of listen address and port
    zone: str = "default"
    host: str = ""  #: failure domain `host`; empty: the node's name
    join_token_file: str = ""  #: needed once, until the node has joined
    tls: TlsConfig | None = None
    insecure_plaintext: bool = False
    log_level: LogLevel = "info"
    log_format: LogFormat = "console"  #: console: for people; json: one object a line, with trace ids
    limits: Limits = msgspec.field(default_factory=Limits)

    @property
    def url(self) -> str:
        """Base URL that others use."""
        if self.advertise_url:
            return self.advertise_url.rstrip("/")
        host = f"[{self.listen_host}]" if ":" in self.listen_host else self.listen_host
        return f"{'https' if self.tls else 'http'}://{host}:{self.listen_port}"

    @property
    def host_domain(self) -> str:
        """Name of the failure domain `host`."""
        return self.host or self.name


def load_config(content: bytes, environment: Mapping[str, str]) -> NodeConfig:
    """Decode and check; `Invalid` names the key. `COPYPOOL_NODE_LISTEN_PORT=7401` overrides `listen_port`.

    Overrides reach the top-level scalars and, separated by commas, `coordinators`.
    """
    try:
        raw = msgspec.toml.decode(content)
        for key, value in environment.items():
            if key.startswith(ENVIRONMENT_PREFIX):
                field = key.removeprefix(ENVIRONMENT_PREFIX).lower()
                raw[field] = [part.strip() for part in value.split(",")] if field == "coordinators" else value
        config = msgspec.convert(raw, NodeConfig, strict=False)
    except msgspec.MsgspecError as exc:
        raise Invalid(f"the node's configuration is not valid: {exc}") from exc
    check_config(config)
    return config


def check_config(config: NodeConfig) -> None:
    """Rules that types do not show; `Invalid` says which one is broken and what to do."""
    check_name(config.name, "node name")
    check_name(config.zone, "zone")
    check_name(config.host_domain, "host")
    if not config.coordinators or any(not url.startswith(("http://", "https://")) for url in config.coordinators):
        raise Invalid("`coordinators` must list at least one http:// or https:// base URL")
    if not config.volumes:
        raise Invalid("`volumes` is empty: a node without volumes stores nothing")
    for volume in config.volumes:
        check_name(volume.name, "volume name")
        check_name(volume.pool, "pool name")
    for what in ("name", "path"):
        values = [getattr(volume, what) for volume in config.volumes]
        if len(set(values)) != len(values):
            raise Invalid(f"two volumes have the same {what}")
    if not is_loopback(config.listen_host) and config.tls is None and not config.insecure_plaintext:
        raise Invalid(
            f"{config.listen_host!r} is reachable from other machines and no TLS is configured: "
            "set [tls], or insecure_plaintext = true in a network that is trusted"
        )


def is_loopback(host: str) -> bool:
    """Whether a listen address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_context(tls: TlsConfig | None) -> ssl.SSLContext | None:
    """The listener's TLS context; None: plaintext."""
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def client_context(tls: TlsConfig | None) -> ssl.SSLContext | None:
    """The TLS context of calls to coordinators and nodes; None: plaintext or the system's trust."""
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.ca_file)
    context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def read_secret(path: str, what: str) -> str:
    """The stripped content of a small secret file; `CopypoolError` names the file when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CopypoolError(f"cannot read the {what} from {path}: {exc}") from exc
