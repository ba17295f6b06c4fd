"""The coordinator's settings: a TOML file, overridden by `COPYPOOL_COORDINATOR_*` and `--set` (see `copypool.serving`).

All is checked as a whole before anything starts; `coordinator/CONFIG.md` is made of it. Secrets are files, never
values.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from copypool.protocol.errors import CopypoolError
from copypool.protocol.names import check_name
from copypool.serving import settings
from copypool.serving.addresses import base_url, check_listener
from copypool.serving.encryption import TlsSection, check_section, troubles
from copypool.serving.quantities import Count, LogLevel, Port, Ratio, Seconds, WholeSeconds
from copypool.serving.secrets import read_secret, read_text, read_token
from copypool.serving.settings import ConfigError
from copypool.telemetry.logs import LogFormat
from copypool.telemetry.spans import TraceExport
from copypool.telemetry.spans import trouble as trouble_of_export
from copypool.tls import LOOK_S, TlsError, TlsFiles, client_context, read_leaf

ENV_PREFIX = "COPYPOOL_COORDINATOR_"
MASTER_SECRET_MIN_BYTES = 32

ScrubRate = Annotated[int, msgspec.Meta(ge=1024, le=1024**4)]


class EtcdSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the catalog is."""

    endpoints: Annotated[list[str], msgspec.Meta(min_length=1)]  #: host:port, without a scheme
    ca_file: str = ""  #: with it, etcd is spoken to over TLS
    cert_file: str = ""  #: where etcd asks its clients for a certificate
    key_file: str = ""  #: its private key, not encrypted
    user: str = ""  #: where etcd asks for one
    password_file: str = ""  #: the user's password
    timeout_s: Seconds = 5.0  #: deadline of a call, attempts on other members included
    reload_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = LOOK_S  #: renewed TLS files are in use after this time
    #: what its members run with as --quota-backend-bytes, which they do not tell; for the days-to-quota metric alone
    quota_bytes: Annotated[int, msgspec.Meta(ge=1024 * 1024, le=1024**4)] = 2 * 1024**3

    @property
    def tls_files(self) -> TlsFiles | None:
        """For `copypool.tls`; None: plaintext."""
        return TlsFiles(self.ca_file, self.cert_file, self.key_file) if self.ca_file else None


class BootstrapSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the first coordinator makes in an empty catalog; nothing happens where it exists."""

    primary_pool: str = "primary"  #: where the first namespace is written
    copy_pool: str = "copy"  #: where it is copied to
    namespace: str = "default"  #: the first namespace


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of memory and concurrency."""

    lookup_txns: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2  #: directory transactions in flight
    lookup_queue: Count = 8192  #: lookups waiting for one; more is `Overloaded`
    node_reads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2  #: read-many calls in flight per node
    node_read_queue: Count = 4096  #: small reads waiting per node
    #: memory for the content of small files that were read last; 0: none is kept
    kept_bytes: Annotated[int, msgspec.Meta(ge=0, le=1024**4)] = 64 * 1024 * 1024
    #: large files streamed through this process at once; each holds about 1 MiB
    streams: Count = 64
    connections: Count = 8192  #: at a time; one more is cut off at once
    requests: Count = 4096  #: requests in work; more is `Overloaded`
    #: the longest request of a client
    rpc_body_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1024**3)] = 1024 * 1024
    #: the longest request of a node
    node_body_bytes: Annotated[int, msgspec.Meta(ge=1024 * 1024, le=1024**3)] = 32 * 1024 * 1024


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of one coordinator."""

    name: str  #: unique among the coordinators
    etcd: EtcdSection  #: where the catalog is
    master_secret_file: str  #: >= 32 bytes, the same for every coordinator; all node keys derive from it
    admin_token_file: str  #: the first admin's token; never given out over the network
    join_token_file: str  #: lets a node join
    listen_host: str = "127.0.0.1"  #: address to listen on
    listen_port: Port = 7600  #: 0: any free port
    #: 0: none. Coordinators of one machine, run by one user, listen on it together, each besides its own listen_port:
    #: new connections of clients are spread over those that serve. Nodes are refused there.
    shared_port: Port = 0
    advertise_url: str = ""  #: how nodes and clients reach it; empty: made of listen_host and listen_port
    zone: str = ""  #: failure domain of this process; plain HTTP is served from the nearest location
    tls: TlsSection | None = None  #: without it the coordinator speaks plaintext
    insecure_plaintext: bool = False  #: listen beyond loopback without TLS
    #: raise by one to renew the nodes' capability keys
    key_number: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 1
    session_ttl_s: Annotated[int, msgspec.Meta(ge=3, le=600)] = 15  #: how long a silent node keeps its session
    grace_s: WholeSeconds = 600  #: how long a node may be away before its bytes are rebuilt
    #: every location is read back once in this time
    scrub_period_s: Annotated[int, msgspec.Meta(ge=1, le=10 * 366 * 86_400)] = 14 * 24 * 3600
    #: How long a location that is not needed any more stays: the life of a read capability and 30 s. Less is for tests:
    #: readers who were sent there then have to go elsewhere in the middle of a read.
    drop_delay_s: WholeSeconds = 330
    process_patience_s: WholeSeconds = 60  #: a process of which nothing can go on ends after this
    scrub_floor_bytes_s: ScrubRate = 1024 * 1024  #: per volume: as fast at least, while something is due
    scrub_ceiling_bytes_s: ScrubRate = 32 * 1024 * 1024  #: per volume: never faster, even if the period is missed
    shutdown_s: Seconds = 10.0  #: requests under way may take this long after SIGTERM
    allow_unsound_etcd: bool = False  #: start on an etcd version that is known to lose data
    bootstrap: BootstrapSection = BootstrapSection()  #: what the first coordinator makes
    limits: Limits = Limits()  #: bounds of memory and concurrency
    log_level: LogLevel = "info"  #: the least that is logged
    log_format: LogFormat = "console"  #: console: for people; json: one object a line, with trace ids
    trace_export: TraceExport = "off"  #: otlp: spans go to the collector of OTEL_EXPORTER_OTLP_*; needs copypool[otel]
    trace_ratio: Ratio = 0.01  #: share of the traces to export, besides those that the caller records


def load(path: Path, environment: Mapping[str, str], flags: Sequence[str] = ()) -> Config:
    """The settings of a file and its overrides. Blocking: reads the file.

    Raises:
        ConfigError: the file cannot be read, a value is wrong, a name is unknown, or the whole is not safe.
    """
    return parse(settings.read_toml(path), environment, flags)


def parse(raw: Mapping[str, Any], environment: Mapping[str, str], flags: Sequence[str] = ()) -> Config:
    """The settings of a parsed file and its overrides; raises `ConfigError`."""
    config = settings.parse(Config, raw, prefix=ENV_PREFIX, environment=environment, flags=flags)
    _check(config)
    return config


def _check(config: Config) -> None:
    """What one field cannot tell."""
    try:
        check_name(config.name)
        check_name(config.bootstrap.namespace, "bootstrap.namespace")
        check_name(config.bootstrap.primary_pool, "bootstrap.primary_pool")
        check_name(config.bootstrap.copy_pool, "bootstrap.copy_pool")
    except CopypoolError as exc:
        raise ConfigError(exc.message) from exc
    if config.bootstrap.primary_pool == config.bootstrap.copy_pool:
        raise ConfigError("bootstrap.primary_pool and bootstrap.copy_pool are the same name")
    if config.scrub_floor_bytes_s > config.scrub_ceiling_bytes_s:
        raise ConfigError("scrub_floor_bytes_s is above scrub_ceiling_bytes_s")
    for endpoint in config.etcd.endpoints:
        host, _, port = endpoint.rpartition(":")
        if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"etcd.endpoints: {endpoint!r} is not of the form host:port, without a scheme")
    if bool(config.etcd.cert_file) != bool(config.etcd.key_file):
        raise ConfigError("etcd.cert_file and etcd.key_file go together")
    if config.etcd.cert_file and not config.etcd.ca_file:
        raise ConfigError("etcd.cert_file needs etcd.ca_file")
    if bool(config.etcd.user) != bool(config.etcd.password_file):
        raise ConfigError("etcd.user and etcd.password_file go together")
    check_section(config.tls)
    check_listener(
        config.listen_host,
        config.advertise_url,
        tls=config.tls is not None,
        insecure_plaintext=config.insecure_plaintext,
    )
    if config.shared_port:
        _check_shared(config)


def _check_shared(config: Config) -> None:
    if config.shared_port == config.listen_port:
        raise ConfigError(
            "shared_port and listen_port are the same: each coordinator needs a port of its own, where nodes reach it"
        )
    try:
        advertised_port = urlsplit(config.advertise_url).port
    except ValueError as exc:
        raise ConfigError(f"advertise_url: {exc}") from exc
    if advertised_port == config.shared_port:
        raise ConfigError("advertise_url names shared_port: nodes must reach this very coordinator by it")


def advertised(config: Config, port: int) -> str:
    """The base URL under which others call this process, listening on `port`."""
    return base_url(config.advertise_url, config.listen_host, port, tls=config.tls is not None)


class Secrets(msgspec.Struct, frozen=True):
    """What the secret files hold. Its repr is kept out of logs."""

    master: bytes
    admin_token: str
    join_token: str
    etcd_password: str = ""

    def __repr__(self) -> str:
        return "Secrets(...)"


def load_secrets(config: Config) -> Secrets:
    """Read the secret files. Blocking. Raises `ConfigError` for a file that is missing, readable by others or short."""
    master = read_secret(config.master_secret_file, "master_secret_file")
    if len(master) < MASTER_SECRET_MIN_BYTES:
        raise ConfigError(
            f"master_secret_file holds {len(master)} bytes; at least {MASTER_SECRET_MIN_BYTES} are needed"
        )
    return Secrets(
        master=master,
        admin_token=read_token(config.admin_token_file, "admin_token_file"),
        join_token=read_token(config.join_token_file, "join_token_file"),
        etcd_password=read_text(config.etcd.password_file, "etcd.password_file") if config.etcd.password_file else "",
    )


def find_troubles(config: Config) -> list[str]:
    """What of the files that the settings name would keep the coordinator from its work; empty: nothing. Blocking."""
    found = troubles(config.tls, advertised(config, config.listen_port))
    found += filter(None, [trouble_of_export(config.trace_export)])
    try:
        load_secrets(config)
    except ConfigError as exc:
        found.append(str(exc))
    files = config.etcd.tls_files
    if files is not None:
        try:
            client_context(files)
            if files.certificate and (trouble := read_leaf(files.certificate).trouble(time.time())):
                found.append(f"etcd.cert_file: {files.certificate}: {trouble}")
        except TlsError as exc:
            found.append(f"etcd: {exc}")
    return found
