"""The coordinator's settings: one TOML file, overridden by the environment, checked as a whole before anything starts.

Every field may be overridden by `COPYPOOL_COORDINATOR_<FIELD>`, a field of a section by
`COPYPOOL_COORDINATOR_<SECTION>__<FIELD>`; text fields take the value as it is, others are read as TOML
(`COPYPOOL_COORDINATOR_ETCD__ENDPOINTS='["a:2379", "b:2379"]'`). Unknown keys are errors, in the file and in the
environment. Secrets are files, never values.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from copypool.protocol.errors import CopypoolError
from copypool.protocol.names import check_name
from copypool.telemetry.logs import LogFormat

ENV_PREFIX = "COPYPOOL_COORDINATOR_"
MASTER_SECRET_MIN_BYTES = 32
TOKEN_MIN_CHARACTERS = 24

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[int, msgspec.Meta(ge=1)]
BytesPerSecond = Annotated[int, msgspec.Meta(ge=1024)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]


class ConfigError(Exception):
    """The settings cannot be used; the message names the field and says why."""


class EtcdSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the catalog is."""

    endpoints: Annotated[list[str], msgspec.Meta(min_length=1)]  #: host:port, without a scheme
    ca_file: str = ""  #: with it, etcd is spoken to over TLS
    cert_file: str = ""
    key_file: str = ""
    user: str = ""
    password_file: str = ""
    timeout_s: PositiveFloat = 5.0
    #: what its members run with as --quota-backend-bytes, which they do not tell; for the days-to-quota metric alone
    quota_bytes: Annotated[int, msgspec.Meta(ge=1024 * 1024)] = 2 * 1024**3


class TlsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files of this server's certificate; `ca_file` checks the nodes that this server calls."""

    cert_file: str
    key_file: str
    ca_file: str = ""


class BootstrapSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the first coordinator makes in an empty catalog; nothing happens where it exists."""

    primary_pool: str = "primary"
    copy_pool: str = "copy"
    namespace: str = "default"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of memory and concurrency."""

    lookup_txns: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2  #: directory transactions in flight
    lookup_queue: Annotated[int, msgspec.Meta(ge=1)] = 8192  #: lookups waiting for one; more is `Overloaded`
    node_reads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2  #: read-many calls in flight per node
    node_read_queue: Annotated[int, msgspec.Meta(ge=1)] = 4096  #: small reads waiting per node
    #: large files streamed through this process at once; each holds about 1 MiB
    streams: Annotated[int, msgspec.Meta(ge=1)] = 64
    connections: Annotated[int, msgspec.Meta(ge=1)] = 8192  #: at a time; one more is cut off at once
    requests: Annotated[int, msgspec.Meta(ge=1)] = 4096  #: requests in work; more is `Overloaded`
    rpc_body_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 1024 * 1024
    node_body_bytes: Annotated[int, msgspec.Meta(ge=1024 * 1024)] = 32 * 1024 * 1024


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of one coordinator."""

    name: str
    etcd: EtcdSection
    master_secret_file: str  #: >= 32 bytes, the same for every coordinator; all node keys derive from it
    admin_token_file: str  #: the first admin's token; never given out over the network
    join_token_file: str  #: lets a node join
    listen_host: str = "127.0.0.1"
    listen_port: Port = 7600  #: 0: any free port
    advertise_url: str = ""  #: how nodes and clients reach it; empty: made of listen_host and listen_port
    zone: str = ""  #: failure domain of this process; plain HTTP is served from the nearest location
    tls: TlsSection | None = None
    insecure_plaintext: bool = False  #: listen beyond loopback without TLS
    key_number: Annotated[int, msgspec.Meta(ge=1)] = 1  #: raise by one to renew the nodes' capability keys
    session_ttl_s: Annotated[int, msgspec.Meta(ge=3, le=600)] = 15
    grace_s: Annotated[int, msgspec.Meta(ge=0)] = 600  #: how long a node may be away before its bytes are rebuilt
    scrub_period_s: Seconds = 14 * 24 * 3600  #: every location is read back once in this time
    #: How long a location that is not needed any more stays: the life of a read capability and 30 s. Less is for tests:
    #: readers who were sent there then have to go elsewhere in the middle of a read.
    drop_delay_s: Annotated[int, msgspec.Meta(ge=0)] = 330
    scrub_floor_bytes_s: BytesPerSecond = 1024 * 1024  #: per volume: as fast at least, while something is due
    scrub_ceiling_bytes_s: BytesPerSecond = 32 * 1024 * 1024  #: per volume: never faster, even if the period is missed
    shutdown_s: PositiveFloat = 10.0  #: requests under way may take this long after SIGTERM
    allow_unsound_etcd: bool = False  #: start on an etcd version that is known to lose data
    bootstrap: BootstrapSection = BootstrapSection()
    limits: Limits = Limits()
    log_level: str = "info"
    log_format: LogFormat = "console"  #: console: for people; json: one object a line, with trace ids


def load(path: Path, environment: Mapping[str, str]) -> Config:
    """The settings of a file and its overrides. Blocking: reads the file.

    Raises:
        ConfigError: the file cannot be read, a value is wrong, a key is unknown, or the whole is not safe.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    return parse(raw, environment)


def parse(raw: dict[str, Any], environment: Mapping[str, str]) -> Config:
    """The settings of a parsed file and its overrides; raises `ConfigError`."""
    merged = _merge(raw, environment)
    try:
        config = msgspec.convert(merged, Config)
    except msgspec.ValidationError as exc:
        raise ConfigError(str(exc)) from exc
    _check(config)
    return config


def _merge(raw: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """`raw` with the environment's values put in."""
    merged: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    fields = {field.name: field for field in msgspec.structs.fields(Config)}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        key, _, inner = variable.removeprefix(ENV_PREFIX).lower().partition("__")
        section = _SECTIONS.get(key)
        if inner and section is not None:
            known = {field.name: field for field in msgspec.structs.fields(section)}
            if inner in known:
                target = merged.setdefault(key, {})
                target[inner] = _value(text, variable, is_text=known[inner].type is str)
                continue
        elif not inner and key in fields and section is None:
            merged[key] = _value(text, variable, is_text=fields[key].type is str)
            continue
        raise ConfigError(f"the environment variable {variable} names no setting")
    return merged


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "etcd": EtcdSection,
    "tls": TlsSection,
    "bootstrap": BootstrapSection,
    "limits": Limits,
}


def _value(text: str, variable: str, *, is_text: bool) -> object:
    if is_text:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"the environment variable {variable} is not a TOML value: {exc}") from exc


def is_loopback(host: str) -> bool:
    """Whether a listener on this host can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
    if bool(config.etcd.cert_file) != bool(config.etcd.key_file):
        raise ConfigError("etcd.cert_file and etcd.key_file go together")
    if config.etcd.cert_file and not config.etcd.ca_file:
        raise ConfigError("etcd.cert_file needs etcd.ca_file")
    if bool(config.etcd.user) != bool(config.etcd.password_file):
        raise ConfigError("etcd.user and etcd.password_file go together")
    if config.tls is None and not config.insecure_plaintext and not is_loopback(config.listen_host):
        raise ConfigError(
            f"listen_host {config.listen_host!r} is reachable from other machines and there is no [tls]: "
            "give certificate and key, or set insecure_plaintext = true in a network that you trust"
        )
    if config.advertise_url and not config.advertise_url.startswith(("http://", "https://")):
        raise ConfigError("advertise_url begins with http:// or https://")
    if not config.advertise_url and config.listen_host in ("0.0.0.0", "::"):
        raise ConfigError("advertise_url is needed: listen_host is no address that others can call")
    if config.log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError("log_level is one of debug, info, warning, error")


def advertised(config: Config, port: int) -> str:
    """The base URL under which others call this process, listening on `port`."""
    if config.advertise_url:
        return config.advertise_url.rstrip("/")
    host = f"[{config.listen_host}]" if ":" in config.listen_host else config.listen_host
    return f"{'http' if config.tls is None else 'https'}://{host}:{port}"


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
    master = _secret(config.master_secret_file, "master_secret_file")
    if len(master) < MASTER_SECRET_MIN_BYTES:
        raise ConfigError(
            f"master_secret_file holds {len(master)} bytes; at least {MASTER_SECRET_MIN_BYTES} are needed"
        )
    return Secrets(
        master=master,
        admin_token=_token(config.admin_token_file, "admin_token_file"),
        join_token=_token(config.join_token_file, "join_token_file"),
        etcd_password=_text(config.etcd.password_file, "etcd.password_file") if config.etcd.password_file else "",
    )


def _secret(path: str, field: str) -> bytes:
    file = Path(path)
    try:
        mode = file.stat().st_mode
        content = file.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{field}: {exc}") from exc
    # The group may read: that is how Kubernetes mounts a Secret for a process that is not root.
    if mode & 0o027:
        raise ConfigError(f"{field}: {path} is open to others (mode {mode & 0o777:o}): chmod 600 it")
    return content.strip(b"\r\n")


def _text(path: str, field: str) -> str:
    try:
        return _secret(path, field).decode("ascii").strip()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{field}: {path} is not ASCII text") from exc


def _token(path: str, field: str) -> str:
    token = _text(path, field)
    if len(token) < TOKEN_MIN_CHARACTERS:
        raise ConfigError(f"{field}: a token has at least {TOKEN_MIN_CHARACTERS} characters")
    return token
