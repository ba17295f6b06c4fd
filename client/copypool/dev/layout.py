"""What belongs to a cluster folder: the processes, their ports and zones, and where everything lies.

Pure: the plan is made from sizes and free ports that the caller found, and kept as `cluster.json`, so that a cluster
keeps its ports for life.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from copypool.protocol.api import PoolType
from copypool.protocol.errors import Invalid, NotFound
from copypool.tls import TlsFiles

HOST = "127.0.0.1"
MEMBERS_MAX = 9  #: processes of one kind
OPERATOR = "operator"  #: whose certificate the tools of the cluster folder show
NAMESPACE = "default"  #: exists from the first start, so that the first command can be a put

Kind = Literal["etcd", "coordinator", "node"]


class Sizes(msgspec.Struct, frozen=True):
    """How many processes of each kind."""

    etcd: int = 1
    coordinators: int = 2
    primary_nodes: int = 2
    copy_nodes: int = 2

    def check(self) -> Sizes:
        """Return self, or raise `Invalid`: 1..9 of each, and an odd number of etcd members."""
        for what in self.__struct_fields__:
            number = getattr(self, what)
            if not 1 <= number <= MEMBERS_MAX:
                raise Invalid(f"{what.replace('_', '-')} is {number}; it must be 1 to {MEMBERS_MAX}")
        if self.etcd % 2 == 0:
            raise Invalid(f"etcd is {self.etcd}; an even number of members tolerates no more losses than one less")
        return self

    @property
    def ports(self) -> int:
        """How many ports such a cluster listens on: etcd members have one for clients and one for each other.

        Several coordinators have one together.
        """
        shared = 1 if self.coordinators > 1 else 0
        return 2 * self.etcd + self.coordinators + shared + self.primary_nodes + self.copy_nodes


class Process(msgspec.Struct, frozen=True):
    """One process of the cluster."""

    name: str
    kind: Kind
    port: int
    peer_port: int = 0  #: etcd only
    zone: str = ""  #: nodes only
    pool: str = ""  #: nodes only: the pool of its volume
    pool_type: PoolType = "primary"  #: nodes only
    tls: bool = False  #: speaks TLS alone

    @property
    def scheme(self) -> str:
        """Of its URLs."""
        return "https" if self.tls else "http"

    @property
    def url(self) -> str:
        """Base URL on loopback."""
        return f"{self.scheme}://{HOST}:{self.port}"


class Tuning(msgspec.Struct, frozen=True):
    """Settings of a trial cluster that differ from the defaults of a real one."""

    grace_s: int = 30  #: how long a node may be away before its extents are made again elsewhere
    session_ttl_s: int = 15  #: how long a silent node keeps its session
    scrub_period_s: int = 14 * 24 * 3600  #: everything is read back within this time
    drop_delay_s: int = 330  #: what is not needed any more stays on its disk for this long
    process_patience_s: int = 60  #: a process of which nothing can go on ends after this
    idle_seal_s: float = 30.0  #: an extent that got nothing for so long is sealed, then read back
    rebuild_bytes_s: int = 96 * 1024 * 1024  #: bandwidth of a node's pulls into primary volumes; 0: no limit
    log_format: str = "console"  #: or `json`
    log_level: str = "info"
    trace_export: str = "off"  #: or `otlp`


class Cluster(msgspec.Struct, frozen=True):
    """The content of `cluster.json`."""

    sizes: Sizes
    processes: list[Process]
    tuning: Tuning = Tuning()
    tls: bool = False  #: TLS on every link, certificates asked for between servers
    shared_port: int = 0  #: where all coordinators listen, each besides its own port; 0: a single one has none

    @property
    def shared_url(self) -> str:
        """Base URL of all coordinators together, for clients; that of a single one where there is no other."""
        one = self.of("coordinator")[0]
        return f"{one.scheme}://{HOST}:{self.shared_port}" if self.shared_port else one.url

    def of(self, kind: Kind) -> list[Process]:
        """All processes of one kind, in order of their names."""
        return [process for process in self.processes if process.kind == kind]

    def process(self, name: str) -> Process:
        """The process of that name; `NotFound` lists the names there are."""
        for process in self.processes:
            if process.name == name:
                return process
        names = ", ".join(process.name for process in self.processes)
        raise NotFound(f"no process {name!r} in this cluster: there are {names}")


def plan(sizes: Sizes, ports: Sequence[int], tuning: Tuning, tls: bool = False) -> Cluster:
    """Name the processes of a new cluster and give each its ports, zone and pool."""
    sizes.check()
    if len(ports) < sizes.ports:
        raise ValueError(f"{sizes.ports} ports are needed, {len(ports)} given")
    free = iter(ports)
    processes = [Process(f"etcd{n}", "etcd", next(free), next(free), tls=tls) for n in range(1, sizes.etcd + 1)]
    names = [f"coordinator{n}" for n in range(1, sizes.coordinators + 1)]
    processes += [Process(name, "coordinator", next(free), tls=tls) for name in names]
    for n in range(1, sizes.primary_nodes + sizes.copy_nodes + 1):
        pool: PoolType = "primary" if n <= sizes.primary_nodes else "copy"
        processes.append(Process(f"node{n}", "node", next(free), zone=f"zone{n}", pool=pool, pool_type=pool, tls=tls))
    return Cluster(sizes, processes, tuning, tls, next(free) if sizes.coordinators > 1 else 0)


class Layout:
    """Where the files of one cluster folder are. Makes nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.cluster_file = self.root / "cluster.json"
        self.profile_file = self.root / "profile.toml"
        self.lock_file = self.root / "lock"
        self.secrets = self.root / "secrets"
        self.conf = self.root / "conf"
        self.data_root = self.root / "data"
        self.logs = self.root / "log"
        self.run = self.root / "run"
        self.master_secret = self.secrets / "master-secret"
        self.admin_token = self.secrets / "admin-token"
        self.join_token = self.secrets / "join-token"
        self.tls = self.root / "tls"
        self.authority_key = self.secrets / "authority.key"

    @property
    def folders(self) -> list[Path]:
        """Every folder that a cluster needs, parents first."""
        return [self.root, self.secrets, self.conf, self.data_root, self.logs, self.run, self.tls]

    def config_file(self, process: Process) -> Path:
        """The configuration file of a process; its path on the command line is also how the process is recognised."""
        return self.conf / f"{process.name}.{'json' if process.kind == 'etcd' else 'toml'}"

    def certificate(self, name: str) -> TlsFiles:
        """The TLS files of a process, or of `OPERATOR`; there where the cluster has TLS."""
        return TlsFiles(str(self.tls / "ca.pem"), str(self.tls / f"{name}.pem"), str(self.tls / f"{name}.key"))

    def data(self, name: str) -> Path:
        """Everything that a process keeps."""
        return self.data_root / name

    def volume(self, name: str) -> Path:
        """The volume of a node."""
        return self.data(name) / "volume"

    def log_file(self, name: str) -> Path:
        """What a process said, all its runs."""
        return self.logs / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        """The process id of the last run."""
        return self.run / f"{name}.pid"
