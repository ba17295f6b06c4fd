"""The container engine, by its command line. Every call has a deadline."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

CALL_S = 60.0


class EngineError(Exception):
    """A call failed; the message has what the engine said."""


def call(*arguments: str, timeout_s: float = CALL_S) -> str:
    """Standard output of `docker ARGUMENTS`; `EngineError` when it fails."""
    done = run(*arguments, timeout_s=timeout_s)
    if done.returncode:
        raise EngineError(f"docker {' '.join(arguments[:3])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def run(*arguments: str, timeout_s: float = CALL_S, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """`docker ARGUMENTS`, whatever its exit code."""
    return subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s
    )


def create_network(name: str) -> str:
    """Make a network whose addresses the caller gives out; the first three bytes of them: "172.20.0.".

    The engine takes addresses from the caller only in a subnet that was asked for: it chooses a free one first, which
    is then asked for.
    """
    for last in (False, False, True):
        call("network", "create", name)
        subnet: str = json.loads(call("network", "inspect", name))[0]["IPAM"]["Config"][0]["Subnet"]
        call("network", "rm", name)
        try:
            call("network", "create", "--subnet", subnet, name)
        except EngineError:  # somebody else was quicker
            if last:
                raise
            continue
        break
    return subnet.rpartition(".")[0] + "."


def remove(containers: Sequence[str]) -> None:
    """End and remove containers, whatever their state."""
    if containers:
        call("rm", "--force", "--volumes", *containers)
