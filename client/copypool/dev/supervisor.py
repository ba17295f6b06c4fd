"""The cluster of one folder: make it, start it, stop it, kill parts of it. The library behind `copypool dev`.

Blocking; callers with an event loop run it in a thread. Every wait has a deadline and says what it waits for. All
methods may be repeated: what runs already is left alone, what is gone already is fine.
"""

from __future__ import annotations

import fcntl
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec

from copypool.dev import certificates, processes, settings
from copypool.dev.etcd_binary import EtcdBinary, find_etcd
from copypool.dev.layout import HOST, NAMESPACE, OPERATOR, Cluster, Layout, Process, Sizes, Tuning, plan
from copypool.dev.probes import counter, unplaceable, unready
from copypool.protocol import errors
from copypool.protocol.tokens import new_token

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0  #: from SIGTERM to SIGKILL
_POLL_S = 0.05
#: Below the ports that Linux hands out to outgoing connections, so that a restarted process finds its port free.
_PORTS = range(20_000, 32_000)

Say = Callable[[str], None]


class ProcessStatus(msgspec.Struct):
    """One line of `copypool dev status`."""

    name: str
    kind: Literal["etcd", "coordinator", "node"]
    state: Literal["ready", "unready", "stopped", "down"]  #: `stopped`: by SIGSTOP
    pid: int  #: 0 when down
    url: str
    pool: str  #: nodes only
    zone: str  #: nodes only
    reason: str  #: why it is not ready
    log: str


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            found.append(port)
        if len(found) == count:
            return found
    raise errors.Unavailable(f"no {count} free ports on {HOST} in {_PORTS.start}..{_PORTS.stop - 1}")


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole, readable by its owner alone: every file of the folder may name a secret."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


class Supervisor:
    """One cluster folder. Does nothing until a method is called."""

    def __init__(self, root: Path, say: Say = lambda _: None) -> None:
        self.layout = Layout(root)
        self._say = say
        self._etcd: EtcdBinary | None = None
        self._log_starts: dict[str, int] = {}  # by process: what its log held before it was started here, in bytes

    # -- the folder ---------------------------------------------------------------------------
    @property
    def exists(self) -> bool:
        """Whether the folder holds a cluster."""
        return self.layout.cluster_file.exists()

    def load(self) -> Cluster:
        """The cluster of this folder; `NotFound` when there is none."""
        try:
            return msgspec.json.decode(self.layout.cluster_file.read_bytes(), type=Cluster)
        except FileNotFoundError as exc:
            raise errors.NotFound(f"no cluster in {self.layout.root}: `copypool dev up` makes one") from exc
        except msgspec.MsgspecError as exc:
            raise errors.Invalid(f"{self.layout.cluster_file} is not a cluster of this version: {exc}") from exc

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` or `down` at a time in a folder; `Conflict` for the second."""
        self.layout.root.mkdir(parents=True, exist_ok=True)
        with self.layout.lock_file.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise errors.Conflict(f"another `copypool dev` works on {self.layout.root}") from exc
            yield

    def _create(self, sizes: Sizes, tuning: Tuning, tls: bool) -> Cluster:
        cluster = plan(sizes, _free_ports(sizes.check().ports), tuning, tls)
        for folder in self.layout.folders:
            folder.mkdir(mode=0o700, exist_ok=True)
        _write(self.layout.master_secret, secrets.token_hex(32) + "\n")
        _write(self.layout.admin_token, new_token(secrets.token_bytes(24)) + "\n")
        _write(self.layout.join_token, secrets.token_hex(32) + "\n")
        if tls:
            authority = certificates.make_authority("copypool dev", datetime.now(UTC))
            _write(self.layout.authority_key, authority.key.decode())
            _write(Path(self.layout.certificate(OPERATOR).authority), authority.certificate.decode())
            self._issue([OPERATOR, *(process.name for process in cluster.processes)])
        _write(self.layout.cluster_file, msgspec.json.format(msgspec.json.encode(cluster)).decode() + "\n")
        return cluster

    def _issue(self, names: Sequence[str]) -> None:
        """New keys and certificates, in the place of those of before; the key's file is replaced first."""
        authority = certificates.Pair(
            Path(self.layout.certificate(OPERATOR).authority).read_bytes(), self.layout.authority_key.read_bytes()
        )
        ends = datetime.now(UTC) + timedelta(days=certificates.LEAF_DAYS)
        for name in names:
            files = self.layout.certificate(name)
            pair = certificates.issue(authority, name, certificates.LOOPBACK, ends)
            _write(Path(files.key), pair.key.decode())
            _write(Path(files.certificate), pair.certificate.decode())

    def _configure(self, cluster: Cluster) -> None:
        for process in cluster.processes:
            _write(self.layout.config_file(process), settings.config_of(self.layout, cluster, process))
            if process.kind == "node":
                self.layout.volume(process.name).mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(self.layout.profile_file, settings.profile_of(self.layout, cluster))

    # -- whole cluster ------------------------------------------------------------------------
    def up(
        self,
        sizes: Sizes | None = None,
        tuning: Tuning | None = None,
        timeout_s: float = READY_TIMEOUT_S,
        tls: bool | None = None,
    ) -> Cluster:
        """Make the cluster if there is none, start what does not run, and wait until all of it serves.

        With `tls` a new cluster gets an authority of its own, and TLS on every link for good.
        When it returns, every process is ready, a write to the namespace `default` has a place through any
        coordinator, and the client profile is written.
        `Conflict` when sizes, or whether it has TLS, are given and are not the cluster's; `Unavailable` names what did
        not become ready (what was started is left running, to be looked at or tried again).
        """
        deadline = time.monotonic() + timeout_s
        with self._locked():
            if self.exists:
                cluster = self.load()
                if sizes is not None and sizes != cluster.sizes:
                    raise errors.Conflict(
                        f"the cluster in {self.layout.root} has other sizes ({cluster.sizes}); "
                        "`copypool dev down --wipe` removes it"
                    )
                if tls is not None and tls != cluster.tls:
                    raise errors.Conflict(
                        f"the cluster in {self.layout.root} {'has' if cluster.tls else 'has no'} TLS; "
                        "`copypool dev down --wipe` removes it"
                    )
                if tuning is not None and tuning != cluster.tuning:
                    cluster = msgspec.structs.replace(cluster, tuning=tuning)
                    _write(self.layout.cluster_file, msgspec.json.format(msgspec.json.encode(cluster)).decode() + "\n")
            else:
                cluster = self._create(sizes or Sizes(), tuning or Tuning(), bool(tls))
            self._configure(cluster)
            # Coordinators need the catalog; nodes wait for coordinators by themselves.
            for kinds in (("etcd",), ("coordinator", "node")):
                batch = [process for process in cluster.processes if process.kind in kinds]
                for process in batch:
                    self._start(process)
                self._wait_ready(batch, deadline)
            self._wait_placeable(cluster.of("coordinator"), deadline)
        return cluster

    def down(self, wipe: bool = False, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End every process: SIGTERM, and SIGKILL after `timeout_s`. With `wipe` the folder goes too.

        Nodes end before coordinators, and those before etcd, so that each can say goodbye. No cluster: nothing to do.
        """
        if not self.exists:
            if wipe and self.layout.root.exists() and not any(self.layout.root.iterdir()):
                self.layout.root.rmdir()
            return
        with self._locked():
            cluster = self.load()
            for kind in ("node", "coordinator", "etcd"):
                self._end([process.name for process in cluster.of(kind)], timeout_s)
            if wipe:
                shutil.rmtree(self.layout.root)

    def status(self) -> list[ProcessStatus]:
        """Every process as it is now: one probe each, at most a second."""
        return [self._status_of(process) for process in self.load().processes]

    def pulled_bytes(self) -> int:
        """Bytes that all nodes that are up have pulled from each other since each of them started."""
        return sum(
            counter(process, self.layout.certificate(OPERATOR), "copypool_node_pulled_bytes_total")
            for process in self.load().of("node")
            if self.pid(process.name)
        )

    def renew_certificates(self) -> None:
        """Give every process, and the operator, a new key and certificate. They are in use a second later."""
        cluster = self.load()
        if not cluster.tls:
            raise errors.Invalid(f"the cluster in {self.layout.root} has no TLS: `copypool dev up --tls` makes one")
        with self._locked():
            self._issue([OPERATOR, *(process.name for process in cluster.processes)])

    # -- one process --------------------------------------------------------------------------
    def pid(self, name: str) -> int:
        """The id of a process that is there (running or stopped); 0 when it is down."""
        pid, mark = self._identity(name)
        return pid if pid and processes.state_of(pid, mark) != "down" else 0

    def start(self, name: str, timeout_s: float = READY_TIMEOUT_S, wait: bool = True) -> None:
        """Start a process that is down and wait until it is ready; one that runs is only waited for."""
        process = self.load().process(name)
        self._start(process)
        if wait:
            self._wait_ready([process], time.monotonic() + timeout_s)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> bool:
        """Send a signal, SIGKILL if none is named. After SIGKILL the process is gone when this returns.

        False when there was no such process running.
        """
        pid, mark = self._identity(name)
        if not pid or not processes.send(pid, mark, number):
            return False
        if number == signal.SIGKILL and not processes.wait_gone(pid, mark, STOP_TIMEOUT_S):
            raise errors.Unavailable(f"{name} (process {pid}) did not end after SIGKILL: it hangs in the kernel")
        return True

    def terminate(self, name: str, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End a process in an orderly way: SIGTERM, and SIGKILL after `timeout_s`."""
        self._end([name], timeout_s)

    def stop(self, name: str) -> bool:
        """Freeze a process (SIGSTOP); False when it is down."""
        return self.kill(name, signal.SIGSTOP)

    def cont(self, name: str) -> bool:
        """Let a frozen process go on (SIGCONT); False when it is down."""
        return self.kill(name, signal.SIGCONT)

    # -- inside -------------------------------------------------------------------------------
    def _identity(self, name: str) -> tuple[int, str]:
        process = self.load().process(name)
        try:
            pid = int(self.layout.pid_file(name).read_text())
        except (FileNotFoundError, ValueError):
            pid = 0
        return pid, str(self.layout.config_file(process))

    def _start(self, process: Process) -> None:
        if self.pid(process.name):
            return
        if self._etcd is None:
            self._etcd = find_etcd()
            if self._etcd.warning:
                self._say(f"warning: {self._etcd.warning}")
        arguments = settings.arguments_of(self.layout, process, sys.executable, self._etcd.path)
        # Settings of the starter's environment would override the files of every process alike.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("COPYPOOL_", "ETCD_"))}
        log_file = self.layout.log_file(process.name)
        self._log_starts[process.name] = log_file.stat().st_size if log_file.exists() else 0
        pid = processes.spawn(arguments, log_file, environment)
        _write(self.layout.pid_file(process.name), f"{pid}\n")

    def _wait_ready(self, waiting: list[Process], deadline: float) -> None:
        self._wait(waiting, self._unready, deadline)

    def _unready(self, process: Process) -> str:
        return unready(process, self.layout.certificate(OPERATOR))

    def _wait_placeable(self, coordinators: list[Process], deadline: float) -> None:
        """Wait until every coordinator has heard of the nodes: then a write through any of them has a place."""
        token = self.layout.admin_token.read_text().strip()
        files = self.layout.certificate(OPERATOR)
        self._wait(coordinators, lambda process: unplaceable(process, files, NAMESPACE, token), deadline)

    def _wait(self, waiting: list[Process], reason_of: Callable[[Process], str], deadline: float) -> None:
        said = ""
        while True:
            reasons = {process.name: reason for process in waiting if (reason := reason_of(process))}
            if not reasons:
                return
            for name in reasons:
                if not self.pid(name):
                    raise errors.Unavailable(f"{name} ended while starting: {self._last_words(name)}")
            names = ", ".join(reasons)
            if time.monotonic() > deadline:
                raise errors.Unavailable(f"not ready in time: {names}. {next(iter(reasons.values()))}")
            if names != said:
                self._say(f"waiting for {names}")
                said = names
            waiting = [process for process in waiting if process.name in reasons]
            time.sleep(_POLL_S)

    def _last_words(self, name: str) -> str:
        path = self.layout.log_file(name)
        written = path.read_bytes()[self._log_starts.get(name, 0) :] if path.exists() else b""
        lines = written.decode("utf-8", "replace").splitlines()[-3:]
        return f"{' | '.join(lines) or 'without a word'} (see {path})"

    def _end(self, names: list[str], timeout_s: float) -> None:
        found = [(name, *self._identity(name)) for name in names]
        running = [(name, pid, mark) for name, pid, mark in found if pid and processes.send(pid, mark, signal.SIGTERM)]
        for _, pid, mark in running:
            processes.send(pid, mark, signal.SIGCONT)  # a frozen process ends only when it goes on
        deadline = time.monotonic() + timeout_s
        for name, pid, mark in running:
            if not processes.wait_gone(pid, mark, max(0.0, deadline - time.monotonic())):
                self._say(f"{name} did not end by itself: killing it")
                self.kill(name)
        for name, _, _ in found:
            self.layout.pid_file(name).unlink(missing_ok=True)

    def _status_of(self, process: Process) -> ProcessStatus:
        pid, mark = self._identity(process.name)
        state = processes.state_of(pid, mark) if pid else "down"
        reason = self._unready(process) if state == "running" else ""
        shown: Literal["ready", "unready", "stopped", "down"]
        shown = ("unready" if reason else "ready") if state == "running" else state
        return ProcessStatus(
            process.name,
            process.kind,
            shown,
            pid if state != "down" else 0,
            process.url,
            process.pool,
            process.zone,
            reason,
            str(self.layout.log_file(process.name)),
        )
