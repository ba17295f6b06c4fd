"""`copypool dev`, as a user runs it: one cluster in one folder, idempotent, and gone without a trace."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from copypool.dev import settings
from copypool.dev.supervisor import Supervisor
from copypool.protocol.errors import Unavailable
from kit.cluster import CLI_TIMEOUT_S, until


async def copypool(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the command line tool in `folder`; exit code and standard output."""
    environment = {key: value for key, value in os.environ.items() if key != "COPYPOOL_PROFILE"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "copypool.cli.main",
        *arguments,
        cwd=folder,
        env={**environment, "XDG_CONFIG_HOME": str(folder / "no-profile-here")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), CLI_TIMEOUT_S)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def processes(folder: Path) -> dict[str, dict[str, Any]]:
    code, out = await copypool(folder, "dev", "status", "--json")
    found = {process["name"]: process for process in json.loads(out)["processes"]}
    assert code == (0 if all(process["state"] == "ready" for process in found.values()) else 3)
    return found


async def all_ready(folder: Path) -> dict[str, dict[str, Any]]:
    """The processes once each is ready: a probe has a second, which may be little on a busy machine."""

    async def ready() -> dict[str, dict[str, Any]]:
        found = await processes(folder)
        return found if all(process["state"] == "ready" for process in found.values()) else {}

    return await until(ready, "all processes are ready", within_s=60)


async def test_a_cluster_in_a_folder_from_up_to_down(tmp_path: Path) -> None:
    sizes = ("--coordinators", "1", "--primary-nodes", "1", "--copy-nodes", "1")
    try:
        assert (await copypool(tmp_path, "dev", "up", *sizes))[0] == 0
        first = await all_ready(tmp_path)
        assert set(first) == {"etcd1", "coordinator1", "node1", "node2"}

        # Again: nothing is started twice, also when no sizes are named; other sizes are refused.
        assert (await copypool(tmp_path, "dev", "up"))[0] == 0
        assert await all_ready(tmp_path) == first
        assert (await copypool(tmp_path, "dev", "up", "--copy-nodes", "2"))[0] == 6

        # The other commands find the profile of this folder by themselves.
        (tmp_path / "letter").write_bytes(b"dear store")
        assert (await copypool(tmp_path, "put", "letter", "default/letter"))[0] == 0
        assert (await copypool(tmp_path, "wait", "--copied", "--timeout", "60"))[0] == 0

        assert (await copypool(tmp_path, "dev", "kill", "node1"))[0] == 0
        assert (await processes(tmp_path))["node1"]["state"] == "down"
        assert (await copypool(tmp_path, "dev", "kill", "node1"))[0] == 1
        assert await copypool(tmp_path, "cat", "default/letter") == (0, "dear store")
        assert (await copypool(tmp_path, "dev", "start", "node1"))[0] == 0
        assert (await copypool(tmp_path, "dev", "stop", "node2"))[0] == 0
        assert (await processes(tmp_path))["node2"]["state"] == "stopped"
        assert (await copypool(tmp_path, "dev", "cont", "node2"))[0] == 0

        # Down keeps the data, up brings it back, on the same ports.
        assert (await copypool(tmp_path, "dev", "down"))[0] == 0
        assert {process["state"] for process in (await processes(tmp_path)).values()} == {"down"}
        assert (await copypool(tmp_path, "dev", "up"))[0] == 0
        assert {name: process["url"] for name, process in (await processes(tmp_path)).items()} == {
            name: process["url"] for name, process in first.items()
        }
        assert await copypool(tmp_path, "cat", "default/letter") == (0, "dear store")
        secrets = list((tmp_path / ".dev" / "secrets").iterdir())
        assert len(secrets) == 3
        assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    finally:
        assert (await copypool(tmp_path, "dev", "down", "--wipe"))[0] == 0
    assert not (tmp_path / ".dev").exists()
    assert processes_of(tmp_path) == []


def test_a_process_that_ends_while_starting_is_quoted_with_what_it_said_this_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(tmp_path / "cluster")

    def that_exits(word: str) -> None:
        """What is started instead of etcd; it is recognised by its configuration file's name, as all of them are."""
        program = f"import sys; sys.exit({word!r})" if word else "raise SystemExit(1)"
        monkeypatch.setattr(
            settings,
            "arguments_of",
            lambda layout, process, *_: [sys.executable, "-c", program, str(layout.config_file(process))],
        )

    that_exits("a first reason")
    with pytest.raises(Unavailable, match=r"etcd1 ended while starting: a first reason \("):
        supervisor.up()
    that_exits("")
    with pytest.raises(Unavailable, match=r"etcd1 ended while starting: without a word \("):
        supervisor.up()


def processes_of(folder: Path) -> list[str]:
    """Command lines that name something in the folder."""
    return [line for path in Path("/proc").glob("[0-9]*") if str(folder) in (line := _command_line(path))]


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
