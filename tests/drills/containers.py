"""A real cluster in containers: started by testcontainers, hurt through signals, name spaces and mounts.

Blocking; `drills.cluster` has the same for an event loop. Needs root (mounts, name spaces) and a Docker engine on this
machine. When it ends nothing is left: no container, network, mount, loop device or file.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # its image may not be had; `close` cleans up

import docker
import docker.errors
from docker.types import IPAMConfig, IPAMPool
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from copypool.tls import TlsFiles, client_context
from drills.credentials import write_certificates, write_secrets
from drills.disks import Disk
from drills.layout import (
    CLOCK,
    CLOCK_FILE,
    CONF,
    SECRETS,
    STATE,
    TLS,
    USER_ID,
    VOLUME,
    Layout,
    Member,
    clock_environment,
    etcd_arguments,
    layout_of,
    settings_of,
)
from drills.releases import CURRENT, Release

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10
_POLL_S = 0.1
_PREFIX = "copypool-drill-"  #: of folders and containers; the process id of their run follows
_LABEL = "copypool.drill"  #: of networks: the process id of their run
#: Addresses for measurements (RFC 2544): no machine on the net has one.
_NETWORKS = [f"198.18.{n}" for n in range(100, 200)]


class Containers:
    """The containers of one cluster, their disks and their network."""

    def __init__(
        self, *, tls: bool = bool(os.environ.get("DRILLS_TLS")), release: Release = CURRENT, clocks: bool = False
    ) -> None:
        """With `tls`: on every link, and servers ask each other for certificates. All begin with `release`.

        With `clocks`: coordinators and nodes have wall clocks of their own from the start, which go right at first.
        """
        if os.geteuid() != 0:
            raise RuntimeError("the drills mount disks and enter name spaces: run them as root")
        self._undo = ExitStack()
        self._containers: dict[str, DockerContainer] = {}
        self._network: Network | None = None
        self.disks: dict[str, Disk] = {}
        self.volumes: dict[str, str] = {}  #: the name of each node's volume; a new disk has a new one
        self.folder = Path()
        self.layout = Layout(())
        self._tls = tls
        self._release = release
        self._clocks = clocks
        self._clocked: set[str] = set()  #: who has a wall clock of its own
        self.releases: dict[str, Release] = {}  #: what each coordinator and node runs
        self.files: TlsFiles | None = None  #: of this machine, for calls to members; None: there is no TLS
        self.trust: ssl.SSLContext | None = None  #: the same, loaded

    # -- life ---------------------------------------------------------------------------------
    def up(self) -> None:
        """Start everything and wait until it is ready. After a failure nothing is left.

        What a run that was killed has left on this machine is removed before.
        """
        sweep()
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
            self.folder.chmod(0o755)
            self._undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._network = self._make_network()
            write_secrets(self.folder / "secrets")
            if self._tls:
                self.files = write_certificates(self.folder / "tls", self.layout)
                self.trust = client_context(self.files)
            for member in self.layout.members:
                self._create(member)
            self.await_ready(member.name for member in self.layout.members)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End and remove everything; safe to repeat."""
        self._undo.close()
        self._containers.clear()

    def _make_network(self) -> Network:
        for prefix in _NETWORKS:
            pool = IPAMConfig(pool_configs=[IPAMPool(subnet=f"{prefix}.0/24", gateway=f"{prefix}.1")])
            network = Network(
                docker_network_kw={"ipam": pool, "driver": "bridge", "labels": {_LABEL: str(os.getpid())}}
            )
            try:
                network.create()
            except docker.errors.APIError as exc:
                if "overlap" not in str(exc):
                    raise
                continue
            self._undo.callback(network.remove)
            self.layout = layout_of(prefix, tls=self._tls)
            return network
        raise RuntimeError(f"no free network among {_NETWORKS[0]}.0/24 .. {_NETWORKS[-1]}.0/24")

    def _tls_folder(self, name: str) -> Path:
        return self.folder / "tls" / name

    @property
    def admin_token(self) -> str:
        """The first administrator's token."""
        return (self.folder / "secrets" / "admin-token").read_text().strip()

    def state(self, name: str) -> Path:
        """The folder that a member keeps its state in; etcd's data is in `etcd` below."""
        return self.folder / f"{name}.state"

    def _create(self, member: Member) -> None:
        """Make what a member keeps, and start it."""
        state = self.state(member.name)
        state.mkdir(mode=0o700)
        os.chown(state, USER_ID, USER_ID)
        if member.kind != "etcd":
            self.volumes[member.name] = f"{member.name}-1"
            self.releases[member.name] = self._release
            self._configure(member)
            if self._clocks:
                self._make_clock(member.name)
        if member.kind == "node":
            disk = Disk(self.folder, member.name)
            self._undo.callback(disk.remove)
            disk.make()
            self.disks[member.name] = disk
        self._undo.callback(self._remove, member.name)
        self._run(member)

    def _run(self, member: Member) -> None:
        """Start a new container on what a member keeps."""
        assert self._network is not None
        image = self.releases.get(member.name, CURRENT).image(member.kind)
        container = DockerContainer(image, name=f"{self.folder.name}-{member.name}")
        container.with_network(self._network)
        for source, target, mode in self._mounts(member):
            container.with_volume_mapping(str(source), target, mode)
        if member.kind == "etcd":
            container.with_command(etcd_arguments(self.layout, member))
        elif member.tls:
            # For the image's health check, which speaks to 127.0.0.1 without TLS unless it is told otherwise.
            container.with_envs(COPYPOOL_HEALTH_URL=f"{member.url}/livez", SSL_CERT_FILE=TLS.authority)
        if member.name in self._clocked:
            container.with_volume_mapping(str(self._clock_folder(member.name)), CLOCK, "ro")
            container.with_envs(**clock_environment())
        api = container.get_docker_client().client.api
        endpoint = api.create_endpoint_config(ipv4_address=member.address, aliases=[member.name])
        hardened: dict[str, Any] = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
        container.with_kwargs(
            network=self._network.name,
            networking_config={self._network.name: endpoint},
            user=f"{USER_ID}:{USER_ID}",
            stop_signal="SIGTERM",
            **hardened,
        )
        self._containers[member.name] = container
        container.start()

    def _mounts(self, member: Member) -> Iterator[tuple[Path, str, str]]:
        yield self.state(member.name), STATE, "rw"
        if member.tls:
            yield self._tls_folder(member.name), str(Path(TLS.certificate).parent), "ro"
        if member.kind != "etcd":
            yield self.folder / f"{member.name}.toml", f"{CONF}/{member.kind}.toml", "ro"
            yield self.folder / "secrets", SECRETS, "ro"
        if member.kind == "node":
            yield self.disks[member.name].path, VOLUME, "rw"

    def _remove(self, name: str) -> None:
        container = self._containers.pop(name, None)
        if container is not None:
            container.stop()

    # -- clocks -------------------------------------------------------------------------------
    def give_clock(self, name: str) -> None:
        """Kill a member and start it with a wall clock that `set_clock` sets; it goes right at first.

        Nothing happens to one that has such a clock.
        """
        if name in self._clocked:
            return
        self._make_clock(name)
        self.kill(name)
        self._remove(name)
        self._run(self.layout.member(name))

    def has_clock(self, name: str) -> bool:
        """Whether a member has a wall clock of its own."""
        return name in self._clocked

    def _make_clock(self, name: str) -> None:
        folder = self._clock_folder(name)
        folder.mkdir(exist_ok=True)
        library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
        if library is None:
            raise RuntimeError("there is no libfaketime on this machine (Debian: libfaketime)")
        shutil.copy(library, folder)
        self.set_clock(name, 0)
        self._clocked.add(name)

    def set_clock(self, name: str, ahead_s: int) -> None:
        """Step the wall clock of a member that was given one; monotonic time goes on."""
        file = self._clock_folder(name) / CLOCK_FILE
        draft = file.with_suffix(".new")
        draft.write_text(f"{ahead_s:+d}s\n")
        draft.rename(file)

    def ahead_s(self, name: str) -> float:
        """How far a member's wall clock is ahead of this machine's, by what it answers; to about a second."""
        try:
            with urllib.request.urlopen(self.layout.member(name).ready_url, timeout=5.0, context=self.trust) as reply:
                told = reply.headers["Date"]
        except urllib.error.HTTPError as answer:  # not ready, and says when
            told = answer.headers["Date"]
            answer.close()
        return parsedate_to_datetime(told).timestamp() - time.time()

    def _clock_folder(self, name: str) -> Path:
        return self.folder / f"{name}.clock"

    def _configure(self, member: Member) -> Path:
        """Write a member's settings. The same file for life: a container has that one mounted."""
        config = self.folder / f"{member.name}.toml"
        settings = settings_of(self.layout, member, self.volumes[member.name])
        config.write_text(self.releases[member.name].understood(member.kind, settings))
        return config

    def new_disk(self, node: str) -> None:
        """Give a node that is down an empty disk under a new name."""
        name, _, number = self.volumes[node].rpartition("-")
        self.volumes[node] = f"{name}-{int(number) + 1}"
        self.disks[node].wipe()
        self._configure(self.layout.member(node))

    # -- releases -----------------------------------------------------------------------------
    def replace(self, name: str, release: Release) -> None:
        """Put another release in the place of a member that is down: the same state, disk, address and name."""
        member = self.layout.member(name)
        self._remove(name)
        self.releases[name] = release
        self._configure(member)
        self._run(member)

    def image(self, name: str) -> str:
        """The image that a member's process runs; empty when it is down."""
        return str(self._containers[name].get_wrapped_container().attrs["Config"]["Image"]) if self.pid(name) else ""

    def inside(self, name: str, *command: str) -> tuple[int, str]:
        """Run a program of the image in a member's container; its exit code and what it said."""
        code, output = self._containers[name].get_wrapped_container().exec_run(list(command))
        return int(code), output.decode("utf-8", "replace")

    @property
    def network(self) -> str:
        """The name of its network."""
        assert self._network is not None
        return str(self._network.name)

    # -- processes ----------------------------------------------------------------------------
    def pid(self, name: str) -> int:
        """The process on this machine; 0 when it is down."""
        wrapped = self._containers[name].get_wrapped_container()
        wrapped.reload()
        return int(wrapped.attrs["State"]["Pid"])

    def process_state(self, name: str) -> str:
        """The letter of its state (proc(5)): T when it was stopped; empty when it is down."""
        pid = self.pid(name)
        try:
            # After the name, which is in brackets and may hold any character.
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if pid else ""
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def kill(self, name: str) -> None:
        """SIGKILL; the process is gone when this returns. Nothing to do when it is down."""
        wrapped = self._containers[name].get_wrapped_container()
        if self.pid(name):
            wrapped.kill("SIGKILL")
            wrapped.wait(timeout=STOP_TIMEOUT_S)

    def terminate(self, name: str) -> None:
        """SIGTERM, and SIGKILL after a while."""
        self._containers[name].get_wrapped_container().stop(timeout=STOP_TIMEOUT_S)

    def start(self, name: str) -> None:
        """Start it again on the same disk and address; does not wait until it is ready."""
        if not self.pid(name):
            self._containers[name].get_wrapped_container().start()

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the process: SIGSTOP, SIGCONT."""
        os.kill(self.pid(name), number)

    def log(self, name: str, lines: int = 50) -> str:
        """The end of what it said."""
        return self._containers[name].get_wrapped_container().logs(tail=lines).decode("utf-8", "replace")

    def in_network_of(self, name: str, *command: str) -> str:
        """Run a program of this machine in the network name space of a container; its output."""
        whole = ["nsenter", "--target", str(self.pid(name)), "--net", "--", *command]
        done = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            raise RuntimeError(f"{name}: {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def await_ready(self, names: Iterable[str], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until these serve; fails with the last words of the first that does not."""
        deadline = time.monotonic() + timeout_s
        for name in names:
            url = self.layout.member(name).ready_url
            while not is_ready(url, self.trust):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{name} is not ready within {timeout_s} s; it said:\n{self.log(name)}")
                time.sleep(_POLL_S)

    def leftovers(self) -> list[str]:
        """Mounts of this cluster; empty once it is closed."""
        mounts = Path("/proc/mounts").read_text().splitlines()
        return [line for line in mounts if str(self.folder) in line]


def sweep() -> None:
    """Remove what runs of drills that are no more have left: containers, networks, mounts and folders."""
    with contextlib.closing(docker.from_env()) as engine:
        for container in engine.containers.list(all=True, filters={"name": f"^{_PREFIX}"}):
            if _is_over(container.name.removeprefix(_PREFIX).partition("-")[0]):
                container.remove(force=True)
        for network in engine.networks.list(filters={"label": _LABEL}):
            if _is_over(network.attrs["Labels"][_LABEL]):
                network.remove()
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _is_over(folder.name.removeprefix(_PREFIX).partition("-")[0]):
            for mount in folder.glob("*.mount"):
                subprocess.run(["umount", str(mount)], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)


def _is_over(pid: str) -> bool:
    return pid.isdecimal() and not Path(f"/proc/{pid}").exists()


def is_ready(url: str, trust: ssl.SSLContext | None, timeout_s: float = 2.0) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s, context=trust) as reply:
            return bool(reply.status == http.client.OK)
    except (OSError, http.client.HTTPException):
        return False
