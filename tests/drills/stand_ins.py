"""A cluster that is none: processes of this machine in place of containers, so that faults can be tested in seconds."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from drills.catalogs import MEMBERS
from drills.cluster import DrillCluster
from drills.containers import Containers
from drills.layout import Member, layout_of

NODES = ("node1", "node2")  #: run at first


class Processes(Containers):
    """Processes of this machine in place of containers, with real disks and no network."""

    def __init__(self, folder: Path) -> None:
        super().__init__(tls=False)
        self.folder = folder
        self.layout = layout_of("198.18.0")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.volumes = {name: f"{name}-1" for name in NODES}
        self.steps_s: dict[str, int] = {}  #: of the wall clocks that were set
        self.images: dict[str, str] = {}
        self.rules: dict[str, list[str]] = {}  #: by which packets are dropped

    def pid(self, name: str) -> int:
        return self._running[name].pid if name in self._running else 0

    def start(self, name: str) -> None:
        if name not in self._running:
            self._running[name] = subprocess.Popen(["sleep", "600"])

    def kill(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            process.kill()
            process.wait(timeout=10)

    def terminate(self, name: str) -> None:
        self.kill(name)

    def await_ready(self, names: object, timeout_s: float = 0.0) -> None:
        """They serve at once."""

    def in_network_of(self, name: str, *command: str) -> str:
        return "".join(f"{rule}\n" for rule in self.rules.get(name, ())) if "-S" in command else ""

    def set_clock(self, name: str, ahead_s: int) -> None:
        self.steps_s[name] = ahead_s

    def has_clock(self, name: str) -> bool:
        return name in self.steps_s

    def ahead_s(self, name: str) -> float:
        return self.steps_s.get(name, 0)

    def image(self, name: str) -> str:
        return self.images.get(name, "") if self.pid(name) else ""

    def end(self) -> None:
        """Kill all of them."""
        for name in [*self._running]:
            self.kill(name)


class Asked(DrillCluster):
    """A cluster whose leaders are known, and whose etcd is a number."""

    def __init__(self, containers: Processes) -> None:
        super().__init__(containers)
        self.processes = containers
        self.etcd_leads = "etcd1"
        self.transfers = True  #: whether etcd hands over when it is asked to
        self.revision = 1000
        self.compacted_at = 0

    async def leader(self) -> str:
        return NODES[0]

    async def etcd_leader(self) -> Member:
        return self.layout.member(self.etcd_leads)

    async def ask_etcd(self, member: Member, call: str, **fields: object) -> dict[str, Any]:
        match call:
            case "cluster/member/list":
                return {"members": [{"ID": each, "name": each} for each in MEMBERS]}
            case "maintenance/transfer-leadership" if self.transfers:
                self.etcd_leads = str(fields["targetID"])
            case "maintenance/status":
                return {"header": {"revision": str(self.revision)}}
            case "kv/compaction":
                self.compacted_at = int(str(fields["revision"]))
        return {"header": {}}
