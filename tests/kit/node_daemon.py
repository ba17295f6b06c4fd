"""A node as a process of its own (`python -m copypool_node`) against a fake coordinator in the test's process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec

from copypool.dev.settings import to_toml
from copypool.protocol.api import PoolType
from copypool_node.config import Limits, NodeConfig, VolumeConfig
from kit.etcd_process import free_ports
from kit.eventually import eventually
from kit.fake_coordinator import JOIN_TOKEN, FakeCoordinator
from kit.node_process import NodeUnderTest

READY_S = 60.0


class NodeDaemon:
    """State and one volume are below `home`; log and configuration below `folder`."""

    def __init__(
        self,
        folder: Path,
        home: Path,
        coordinator: FakeCoordinator,
        http: aiohttp.ClientSession,
        *,
        name: str = "n1",
        pool_type: PoolType = "primary",
        limits: Limits | None = None,
        program: tuple[str, ...] = ("-m", "copypool_node"),
    ) -> None:
        self._program = [sys.executable, *program]
        self.home = home
        self.volume = home / "volume"
        self.volume.mkdir()
        os.sync()  # an administrator made it long ago
        self.name = name
        self._coordinator = coordinator
        self._http = http
        self._port = free_ports(1)[0]
        self._url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / f"{name}.log"
        token = folder / "join-token"
        token.touch(0o600)
        token.write_text(JOIN_TOKEN)
        config = NodeConfig(
            name=name,
            coordinators=[coordinator.url],
            state_dir=str(home / "state"),
            volumes=[VolumeConfig(str(self.volume), f"{name}-a", pool_type, pool_type, reserve_bytes=16 * 1024 * 1024)],
            listen_port=self._port,
            join_token_file=str(token),
            limits=limits or Limits(heartbeat_s=0.5, verify_bytes_s=0),
        )
        self._config = folder / f"{name}.toml"
        raw = {key: value for key, value in msgspec.to_builtins(config).items() if value is not None}
        self._config.write_text(to_toml(raw))

    def launch(self) -> None:
        """Start the process; it is not ready yet."""
        command = [*self._program, "--config", str(self._config)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def restart_as(self, *program: str) -> None:
        """Start the process anew, as another program."""
        self._program = [sys.executable, *program]
        self.launch()

    def died(self) -> bool:
        """Whether the process ends by a SIGKILL of its own, soon. Blocks."""
        assert self._process is not None
        return self._process.wait(READY_S) == -signal.SIGKILL

    async def ready(self) -> NodeUnderTest:
        """Wait until it takes writes; a client of it."""

        async def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"the node ended:\n{self.story()}"
            try:
                async with self._http.get(f"{self._url}/readyz") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        try:
            await eventually(answers, "the node takes writes", within_s=READY_S)
        except AssertionError as exc:
            exc.add_note(self.story())
            raise
        node_id = self._coordinator.nodes[self.name]
        mounted = [one for one in self._coordinator.requests["mount"] if getattr(one, "node_id", -1) == node_id]
        volume = self._coordinator.volumes[cast(Any, mounted[-1]).uuid]
        played = SimpleNamespace(
            session=SimpleNamespace(node_id=node_id),
            volumes=[SimpleNamespace(id=volume)],
            config=SimpleNamespace(tls=None),
        )
        return NodeUnderTest(
            cast(Any, played), cast(Any, SimpleNamespace(port=self._port)), self._coordinator, self._http
        )

    def story(self) -> str:
        """The last lines of its log."""
        return self._log.read_text(errors="replace")[-3000:]

    def freeze(self) -> None:
        """SIGSTOP: whatever it is told from now on, it tells nobody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    async def kill(self) -> None:
        """kill -9, and reap; safe to repeat."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
