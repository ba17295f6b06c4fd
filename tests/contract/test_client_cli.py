"""The command line tool as a user runs it: a process, against the fake cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from copypool.protocol.digests import digest_of, format_digest
from copypool.protocol.errors import CatalogDown
from copypool.protocol.tokens import Principal, Role
from kit.eventually import eventually
from kit.fake_cluster import ADMIN, FakeCluster

TIMEOUT_S = 60.0


class Ended(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def json(self) -> dict[str, object]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> dict[str, object]:
        value = json.loads(self.err)
        assert isinstance(value, dict)
        return value


class Shell:
    """Runs `copypool` in a folder with a profile of the cluster."""

    def __init__(self, folder: Path, cluster: FakeCluster) -> None:
        self.folder = folder
        self.write_profile(cluster, ADMIN)

    def write_profile(self, cluster: FakeCluster, token: str) -> None:
        (self.folder / "token").write_text(token + "\n")
        urls = json.dumps([coordinator.url for coordinator in cluster.coordinators])
        profile = f'coordinators = {urls}\ntoken_file = "token"\nnamespace = "default"\n'
        (self.folder / "profile.toml").write_text(profile)

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            "-m",
            "copypool.cli.main",
            *arguments,
            cwd=self.folder,
            env={**os.environ, "COPYPOOL_PROFILE": "profile.toml"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *arguments: str, stdin: bytes = b"") -> Ended:
        process = await self.start(*arguments)
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        assert process.returncode is not None
        return Ended(process.returncode, out, err.decode())


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster() as running:
        yield running


@pytest.fixture
def shell(cluster: FakeCluster, tmp_path: Path) -> Shell:
    return Shell(tmp_path, cluster)


async def test_a_file_goes_in_and_comes_out(cluster: FakeCluster, shell: Shell) -> None:
    data = os.urandom(300_000)
    (shell.folder / "f.bin").write_bytes(data)
    stored = await shell("put", "f.bin", "default/dir/f", "--meta", "k=v", "--json")
    assert (stored.code, stored.json["size"], stored.json["digest"]) == (0, 300_000, format_digest(digest_of(data)))
    assert (await shell("cat", "default/dir/f")).out == data
    assert (await shell("get", "default/dir/f", "-")).out == data
    assert (await shell("--namespace", "default", "get", "dir/f", "out")).code == 0
    assert (shell.folder / "out").read_bytes() == data
    assert (await shell("get", ":dir/f")).code == 0
    assert (shell.folder / "f").read_bytes() == data
    cluster.copy_all()
    stat = await shell("stat", "default/dir/f")
    assert b"node3-v1" in stat.out
    as_json = (await shell("stat", "--json", "default/dir/f")).json
    assert as_json["metadata"] == {"k": "v"}
    assert (await shell("rm", "default/dir/f")).code == 0
    missing = await shell("stat", "--json", "default/dir/f")
    assert (missing.code, missing.error["code"], missing.error["retryable"]) == (5, "not_found", False)


async def test_standard_input_of_unknown_length(shell: Shell) -> None:
    data = os.urandom(3_000_000)
    assert (await shell("put", "-", "default/in", stdin=data)).code == 0
    assert (await shell("cat", "default/in")).out == data
    assert (await shell("put", "-", "default/empty")).code == 0
    assert (await shell("cat", "default/empty")).out == b""
    assert (await shell("put", "-", "default/")).code == 2


async def test_folders_and_several_sources(cluster: FakeCluster, shell: Shell) -> None:
    source = shell.folder / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_bytes(b"1")
    (source / "sub" / "b").write_bytes(b"22")
    assert (await shell("put", "tree", "default/t")).code == 0
    assert (await shell("put", "tree/a", "tree/sub", "default/many/")).code == 0
    names = (await shell("ls", "-R", "default/")).out.decode().split()
    assert names == ["many/a", "many/sub/b", "t/a", "t/sub/b"]
    assert (await shell("ls", "default/t")).out.decode().split() == ["t/a", "t/sub/"]
    assert b"blake3:" in (await shell("ls", "-l", "default/t/a")).out
    assert (await shell("ls")).out == b"default/\n"
    assert (await shell("get", "-r", "default/t", "copy")).code == 0
    assert (shell.folder / "copy" / "sub" / "b").read_bytes() == b"22"
    (source / "broken").symlink_to("nowhere")
    incomplete = await shell("put", "tree", "default/t")
    assert incomplete.code == 1, "something was skipped"
    assert "broken" in incomplete.err
    assert (await shell("rm", "-r", "default/t")).code == 0
    assert (await shell("ls", "default/t")).code == 5
    assert (await shell("rm", "-r", "default")).code == 2
    assert (await shell("rm", "-r", "default/")).code == 0


ODD_NAMES = ["a b", "ä", "e\u0301", "%2e", "a?b#c", "line\nfeed", "-dash", "~", "'quote\"", "..."]
REFUSED_NAMES = ["", "/a", "a/", "a//b", ".", "a/..", "a/./b"]


async def test_names_at_the_edges(cluster: FakeCluster, shell: Shell) -> None:
    for name in ODD_NAMES:
        assert (await shell("put", "-", f"default/{name}", stdin=name.encode())).code == 0, name
    listed = [json.loads(line)["path"] for line in (await shell("ls", "-R", "--json", "default")).out.splitlines()]
    assert listed == sorted(ODD_NAMES, key=str.encode)
    shown = (await shell("ls", "-R", "default")).out.decode()
    assert "line\\nfeed" in shown
    for name in REFUSED_NAMES:
        ended = await shell("stat", "--json", f"default/{name}")
        assert (ended.code, ended.error["code"]) == (2, "invalid"), name
    long = await shell("put", "-", f"default/{'x' * 1025}", "--json")
    assert (long.code, long.error["code"]) == (2, "too_large")


async def test_status_and_wait(cluster: FakeCluster, shell: Shell) -> None:
    assert (await shell("put", "-", "default/f", stdin=b"x")).code == 0
    red = await shell("status")
    assert red.code == 3
    assert red.out.startswith(b"NOT OK: ")
    late = await shell("wait", "--copied", "--timeout", "0.1", "--json")
    assert (late.code, late.error["retryable"]) == (7, True)
    cluster.copy_all()
    assert (await shell("wait", "--copied")).code == 0
    green = await shell("status")
    assert (green.code, green.out.splitlines()[0]) == (0, b"OK: every live byte is proven to be where policy says")
    assert len(green.out.splitlines()) < 24
    as_json = await shell("--json", "status")
    assert (as_json.code, as_json.json["healthy"]) == (0, True)


async def test_lists_and_administration(cluster: FakeCluster, shell: Shell) -> None:
    for command in ("nodes", "volumes", "pools", "damaged"):
        assert (await shell(command)).code == 0, command
        assert "items" in (await shell("query", command, "--json")).json
    assert b"ExtentSealed" in (await shell("events")).out
    assert (await shell("namespace", "create", "team")).code == 0
    assert (await shell("namespace", "create", "team")).code == 6
    assert b"team" in (await shell("namespace", "list")).out
    token = (await shell("token", "create", "bob", "--role", "reader", "--in", "team/x")).out.decode().strip()
    assert cluster.tokens[token] == Principal("bob", Role.reader, "team", "x")
    shell.write_profile(cluster, token)
    assert (await shell("put", "-", "team/x/f")).code == 4
    assert (await shell("stat", "default/f")).code == 5
    shell.write_profile(cluster, ADMIN)
    assert (await shell("token", "revoke", "bob")).code == 0
    shell.write_profile(cluster, token)
    assert (await shell("stat", "team/x/f")).code == 4


async def test_errors_are_told_by_code_and_exit_code(cluster: FakeCluster, shell: Shell) -> None:
    usage = await shell("put", "--json", "only-one")
    assert (usage.code, usage.error["code"]) == (2, "usage")
    assert (await shell("no-such-command")).code == 2
    assert (await shell("put", "missing-file", "default/f")).code == 2
    for coordinator in cluster.coordinators:
        coordinator.error = CatalogDown("etcd does not answer")
    down = await shell("stat", "--json", "default/f")
    error = down.error
    assert len(error.pop("trace_id")) == 32
    assert (down.code, error) == (
        7,
        {"code": "catalog_down", "message": "etcd does not answer", "retryable": True},
    )
    for coordinator in cluster.coordinators:
        await coordinator.stop()
    assert (await shell("put", "-", "default/f", "--profile", "no-such-profile")).code == 2


async def test_ctrl_c_while_waiting_for_input(shell: Shell, cluster: FakeCluster) -> None:
    process = await shell.start("put", "-", "default/never")
    assert process.stdin is not None
    process.stdin.write(b"x" * 100)
    # The program is at its work once the pipe is empty; there is no other sign of that from outside.
    await eventually(lambda: b"copypool stdin" in threads_of(process.pid), "standard input is being read")
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert not cluster.files


def threads_of(pid: int) -> bytes:
    """`copypool stdin` if the process has a second thread; names of Python threads are not visible from outside."""
    count = len(os.listdir(f"/proc/{pid}/task"))
    return b"copypool stdin" if count > 1 else b""


async def test_a_reader_that_had_enough_is_no_error(shell: Shell, cluster: FakeCluster) -> None:
    assert (await shell("put", "-", "default/f", stdin=os.urandom(2_000_000))).code == 0
    process = await shell.start("cat", "default/f")
    assert process.stdout is not None
    assert process.stderr is not None
    await process.stdout.readexactly(1000)
    process.stdout._transport.close()  # type: ignore[attr-defined] # no public way to close the reading end
    assert await asyncio.wait_for(process.stderr.read(), TIMEOUT_S) == b""
    assert await asyncio.wait_for(process.wait(), TIMEOUT_S) in (1, 141)
