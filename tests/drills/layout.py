"""What a drill's cluster is: its members, their addresses, and the text of their settings. Pure.

Three etcd members, two coordinators, four nodes in two zones, each at a fixed address of a private network, so that it
keeps its address for life and a cut can name it. Nothing is published: the host reaches the members over the bridge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from copypool.tls import TlsFiles
from copypool.toml_text import Value, to_toml

Kind = Literal["etcd", "coordinator", "node"]

ETCD_PORT = 2379
ETCD_PEER_PORT = 2380
COORDINATOR_PORT = 7600
NODE_PORT = 7400
NAMESPACE = "default"
USER_ID = 10001  #: of the processes in the images

#: A silent node is away after this time, and what it held is made again elsewhere after the grace.
SESSION_TTL_S = 5
GRACE_S = 4
HEARTBEAT_S = 1.0
IDLE_SEAL_S = 6.0
#: No client of a drill holds on to where it was sent for as long; and the place is free for another copy only then.
DROP_DELAY_S = 20
#: Where each container finds its things.
CONF = "/etc/copypool"
SECRETS = "/run/secrets/copypool"
TLS = TlsFiles("/run/secrets/tls/ca.pem", "/run/secrets/tls/cert.pem", "/run/secrets/tls/key.pem")
CLOCK = "/clock"
CLOCK_FILE = "ahead"
VOLUME = "/volume"
STATE = "/state"


@dataclass(frozen=True, slots=True)
class Member:
    """One container."""

    name: str
    kind: Kind
    address: str
    zone: str = ""
    pool: Literal["", "primary", "copy"] = ""
    tls: bool = False  #: speaks TLS alone, and asks other servers for their certificates

    @property
    def scheme(self) -> str:
        """Of its URLs."""
        return "https" if self.tls else "http"

    @property
    def port(self) -> int:
        """Where it listens for clients."""
        return {"etcd": ETCD_PORT, "coordinator": COORDINATOR_PORT, "node": NODE_PORT}[self.kind]

    @property
    def url(self) -> str:
        """Base URL, for the host and for the others alike."""
        return f"{self.scheme}://{self.address}:{self.port}"

    @property
    def ready_url(self) -> str:
        """Answers 200 once it serves."""
        return f"{self.url}/{'health' if self.kind == 'etcd' else 'readyz'}"


@dataclass(frozen=True, slots=True)
class Layout:
    """All members of one cluster."""

    members: tuple[Member, ...]

    def of(self, kind: Kind) -> list[Member]:
        """Those of one kind."""
        return [member for member in self.members if member.kind == kind]

    def member(self, name: str) -> Member:
        """The one of that name."""
        return next(member for member in self.members if member.name == name)


def layout_of(network: str, *, tls: bool = False) -> Layout:
    """The cluster on a network whose first three bytes are `network`: "198.18.7"."""
    members = [Member(f"etcd{n}", "etcd", f"{network}.{10 + n}") for n in (1, 2, 3)]
    members += [Member(f"coordinator{n}", "coordinator", f"{network}.{20 + n}", zone=f"zone{n}") for n in (1, 2)]
    for n in (1, 2, 3, 4):
        zone = "zone1" if n % 2 else "zone2"
        members.append(Member(f"node{n}", "node", f"{network}.{30 + n}", zone, "primary" if n <= 2 else "copy"))
    return Layout(tuple(replace(member, tls=tls) for member in members))


def etcd_arguments(layout: Layout, member: Member) -> list[str]:
    """etcd's command line."""
    peers = {each.name: f"{each.scheme}://{each.address}:{ETCD_PEER_PORT}" for each in layout.of("etcd")}
    scheme = member.scheme
    return [
        *("--name", member.name, "--data-dir", f"{STATE}/etcd"),
        *("--listen-client-urls", f"{scheme}://0.0.0.0:{ETCD_PORT}", "--advertise-client-urls", member.url),
        *("--listen-peer-urls", f"{scheme}://0.0.0.0:{ETCD_PEER_PORT}"),
        *("--initial-advertise-peer-urls", peers[member.name]),
        *("--initial-cluster", ",".join(f"{name}={url}" for name, url in peers.items())),
        *("--logger", "zap", "--log-level", "warn"),
        *(_etcd_tls() if member.tls else ()),
    ]


def _etcd_tls() -> list[str]:
    return [
        *("--cert-file", TLS.certificate, "--key-file", TLS.key),
        *("--trusted-ca-file", TLS.authority, "--client-cert-auth"),
        *("--peer-cert-file", TLS.certificate, "--peer-key-file", TLS.key),
        *("--peer-trusted-ca-file", TLS.authority, "--peer-client-cert-auth"),
    ]


def settings_of(layout: Layout, member: Member, volume: str) -> str:
    """The configuration file of a coordinator or a node; `volume` is the name of the node's volume."""
    files: dict[str, Value] = {"ca_file": TLS.authority, "cert_file": TLS.certificate, "key_file": TLS.key}
    settings: dict[str, Value] = {
        "name": member.name,
        "listen_host": "0.0.0.0",
        "listen_port": member.port,
        "advertise_url": member.url,
        "insecure_plaintext": not member.tls,
        "zone": member.zone,
        "join_token_file": f"{SECRETS}/join-token",
    }
    settings |= _coordinator(layout) if member.kind == "coordinator" else _node(layout, member, volume)
    if member.tls:
        settings["tls"] = {**files, "require_client_cert": True}
    if member.tls and member.kind == "coordinator":
        settings["etcd"] = {**_etcd(layout), **files}
    return to_toml(settings)


def _etcd(layout: Layout) -> dict[str, Value]:
    return {"endpoints": [f"{each.address}:{ETCD_PORT}" for each in layout.of("etcd")]}


def _coordinator(layout: Layout) -> dict[str, Value]:
    return {
        "etcd": _etcd(layout),
        "master_secret_file": f"{SECRETS}/master-secret",
        "admin_token_file": f"{SECRETS}/admin-token",
        "session_ttl_s": SESSION_TTL_S,
        "grace_s": GRACE_S,
        "drop_delay_s": DROP_DELAY_S,
        "bootstrap": {"namespace": NAMESPACE},
    }


def _node(layout: Layout, member: Member, volume: str) -> dict[str, Value]:
    mounted = {"path": f"{VOLUME}/data", "name": volume, "pool": member.pool, "pool_type": member.pool}
    return {
        "host": member.name,
        "coordinators": [each.url for each in layout.of("coordinator")],
        "state_dir": STATE,
        "volumes": [mounted],
        "limits": {"heartbeat_s": HEARTBEAT_S, "idle_seal_s": IDLE_SEAL_S},
    }


def clock_environment() -> dict[str, str]:
    """What gives a process a wall clock of its own. Monotonic time stays true: deadlines are measured by it."""
    return {
        "LD_PRELOAD": f"{CLOCK}/libfaketimeMT.so.1",
        "FAKETIME_TIMESTAMP_FILE": f"{CLOCK}/{CLOCK_FILE}",
        "FAKETIME_NO_CACHE": "1",  # with a cache a step back is sometimes noticed after as long as it was
        "NO_FAKE_STAT": "1",  # a step changes no time that a file system has kept
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
