"""Settings of one storage node: a TOML file, overridden by `COPYPOOL_NODE_*` and `--set` (see `copypool.serving`).

Every limit is here with its unit and bounds, so that an operator finds all of them in one place; `node/CONFIG.md` is
made of it. Secrets are files, never values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from copypool.protocol.api import PoolType
from copypool.protocol.errors import CopypoolError
from copypool.protocol.internal import EXTENT_SOFT_BYTES
from copypool.protocol.names import check_name
from copypool.serving import settings
from copypool.serving.addresses import base_url, check_listener
from copypool.serving.encryption import TlsSection, check_section
from copypool.serving.quantities import BytesPerSecond, Count, LogLevel, Port, Ratio, Seconds
from copypool.serving.secrets import read_token
from copypool.serving.settings import ConfigError
from copypool.telemetry.logs import LogFormat
from copypool.telemetry.spans import TraceExport

ENV_PREFIX = "COPYPOOL_NODE_"


class VolumeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """One labelled directory."""

    path: str  #: the directory, which is there
    name: str  #: unique in the cluster; stays with the directory for good
    pool: str  #: the pool that the volume belongs to for good
    pool_type: PoolType  #: what kind of pool that is
    #: kept free for deletes and repair; unset: a rule of size
    reserve_bytes: Annotated[int, Meta(ge=0, le=1024**6)] | None = None


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    """Bounds of queues, waits and rates."""

    queue_records: Count = 8192  #: records waiting for a group, per volume and class; batches may fill a second queue
    #: their payload, for each of these queues
    queue_bytes: Annotated[int, Meta(ge=1024 * 1024, le=1024**4)] = 64 * 1024 * 1024
    commit_wait_s: Seconds = 10.0  #: a writer waits this long for its outcome
    #: an extent this long takes no further group
    extent_soft_bytes: Annotated[int, Meta(ge=64 * 1024, le=1024**4)] = EXTENT_SOFT_BYTES
    idle_seal_s: Seconds = 600.0  #: an open extent that got nothing for this long is sealed
    streams_per_class: Count = 8  #: open extents that long bodies may hold at a time, per volume and class
    stream_wait_s: Seconds = 5.0  #: a long body waits this long for an extent of its own
    body_stall_s: Seconds = 30.0  #: a body that brings no byte for this long is given up
    #: between two heartbeats; a few must fit into the coordinators' `session_ttl_s`
    heartbeat_s: Annotated[float, Meta(gt=0, le=200)] = 3.0
    probe_max_age_s: Seconds = 10.0  #: a volume whose last good write + fsync is older takes no writes
    #: The catalog's revision on a volume's label is at most this old: it tells a catalog that went back.
    label_revision_s: Seconds = 10.0
    pulls_per_volume: Count = 4  #: extents that are copied to a volume at a time
    pull_bytes_s: BytesPerSecond = 0  #: bandwidth of all pulls together; 0: no limit
    #: bandwidth of pulls into primary volumes (rebuilding, moving), so that reads go on beside them; 0: no limit
    rebuild_bytes_s: BytesPerSecond = 96 * 1024 * 1024
    verify_bytes_s: BytesPerSecond = 64 * 1024 * 1024  #: paced reading per volume; 0: no limit
    commands_queued: Count = 10_000  #: pulls or verifies waiting, each
    scanners_kept: Count = 64  #: open extents that a pull can follow without reading them again
    twin_timeout_s: Seconds = 2.0  #: a twin that takes longer for a group or a stripe has ended
    #: extents of other nodes that this one may be the twin of at a time
    twins_open: Annotated[int, Meta(ge=0, le=1_000_000)] = 256
    connections: Count = 4096  #: of clients and peers at a time; one more is cut off at once
    shutdown_s: Seconds = 5.0  #: at SIGTERM, groups under way get this long


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """All settings of one node."""

    name: str  #: unique in the cluster; the node is known by it for good
    coordinators: Annotated[list[str], Meta(min_length=1)]  #: base URLs; more are learned from those that answer
    state_dir: str  #: folder of the node's identity
    volumes: Annotated[list[VolumeConfig], Meta(min_length=1)]  #: what it stores on; overridden as a whole
    listen_host: str = "127.0.0.1"  #: address to listen on
    listen_port: Port = 7400  #: 0: any free port
    advertise_url: str = ""  #: how others reach this node; empty: made of listen address and port
    zone: str = "default"  #: failure domain `zone`
    host: str = ""  #: failure domain `host`; empty: the node's name
    join_token_file: str = ""  #: needed once, until the node has joined
    tls: TlsSection | None = None  #: without it the node speaks plaintext
    insecure_plaintext: bool = False  #: listen beyond loopback without TLS
    log_level: LogLevel = "info"  #: the least that is logged
    log_format: LogFormat = "console"  #: console: for people; json: one object a line, with trace ids
    trace_export: TraceExport = "off"  #: otlp: spans go to the collector of OTEL_EXPORTER_OTLP_*; needs copypool[otel]
    trace_ratio: Ratio = 0.01  #: share of the traces to export, besides those that the caller records
    limits: Limits = msgspec.field(default_factory=Limits)  #: bounds of queues, waits and rates

    @property
    def url(self) -> str:
        """Base URL that others use."""
        return base_url(self.advertise_url, self.listen_host, self.listen_port, tls=self.tls is not None)

    @property
    def host_domain(self) -> str:
        """Name of the failure domain `host`."""
        return self.host or self.name


def load(path: Path, environment: Mapping[str, str], flags: Sequence[str] = ()) -> NodeConfig:
    """The settings of a file and its overrides. Blocking: reads the file.

    Raises:
        ConfigError: the file cannot be read, a value is wrong, a name is unknown, or the whole is not safe.
    """
    return parse(settings.read_toml(path), environment, flags)


def parse(raw: Mapping[str, Any], environment: Mapping[str, str], flags: Sequence[str] = ()) -> NodeConfig:
    """The settings of a parsed file and its overrides; raises `ConfigError`."""
    config = settings.parse(NodeConfig, raw, prefix=ENV_PREFIX, environment=environment, flags=flags)
    _check(config)
    return config


def _check(config: NodeConfig) -> None:
    """What one field cannot tell."""
    try:
        check_name(config.name, "name")
        check_name(config.zone, "zone")
        check_name(config.host_domain, "host")
        for number, volume in enumerate(config.volumes):
            check_name(volume.name, f"volumes[{number}].name")
            check_name(volume.pool, f"volumes[{number}].pool")
    except CopypoolError as exc:
        raise ConfigError(exc.message) from exc
    for url in config.coordinators:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"coordinators: {url!r} is no http:// or https:// base URL")
    for what in ("name", "path"):
        values = [getattr(volume, what) for volume in config.volumes]
        if len(set(values)) != len(values):
            raise ConfigError(f"volumes: two have the same {what}")
    check_section(config.tls)
    check_listener(
        config.listen_host,
        config.advertise_url,
        tls=config.tls is not None,
        insecure_plaintext=config.insecure_plaintext,
    )


def read_join_token(config: NodeConfig) -> str:
    """What lets this node join. Blocking. `ConfigError` when there is none to be read."""
    if not config.join_token_file:
        raise ConfigError("join_token_file: a node that has not joined yet needs it")
    return read_token(config.join_token_file, "join_token_file")
