"""A cluster of played pods. What it makes is named after `prefix`, and all of it goes with `close`."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from chart.fakeapi.kinds import Json
from chart.playing import engine
from chart.playing.pods import Claim, Files, Manifests, Pod

READY_S = 90.0
_POLL_S = 0.1
_PROBE_S = 5.0
_FIRST_ADDRESS = 10


class PlayedCluster:
    """Pods by name. `folder` holds files and claims; it must be one that the engine can mount."""

    def __init__(self, prefix: str, folder: Path, namespace: str, machines: Sequence[str]) -> None:
        self._prefix = prefix
        self._folder = folder
        self._namespace = namespace
        self._machines = machines
        self._addresses: dict[str, str] = {}
        self.pods: dict[str, Pod] = {}
        self._address_prefix = engine.create_network(prefix)

    def close(self) -> None:
        """Remove every container and the network."""
        listed = engine.call("ps", "--all", "--quiet", "--filter", f"network={self._prefix}").split()
        engine.remove(listed)
        engine.call("network", "rm", self._prefix)

    # -- what controllers do ------------------------------------------------------------------
    def apply(self, objects: Sequence[Json]) -> None:
        """Start the pods that are not there yet, all at once."""
        self.adopt(objects)
        for name in self.pods:
            if engine.run("container", "inspect", self._container(name)).returncode:
                self._start(self.pods[name])

    def roll(self, objects: Sequence[Json], names: Collection[str]) -> Iterator[str]:
        """Replace these pods one by one, the last of each controller first, each once the one before is ready.

        Yields the name of each pod once its successor is ready.
        """
        self.adopt(objects)
        for name in sorted(names, reverse=True):
            self.replace(name)
            yield name

    def replace(self, name: str) -> None:
        """End a pod in order, start its successor on the same claims, and return once that is ready."""
        self.stop(name)
        self._start(self.pods[name])
        self.wait_ready([name])

    def adopt(self, objects: Sequence[Json]) -> None:
        """What pods are made from, from now on."""
        manifests = Manifests(objects, self._namespace, self._machines)
        for name, *_ in manifests.identities():
            self._addresses.setdefault(name, f"{self._address_prefix}{_FIRST_ADDRESS + len(self._addresses)}")
        self.pods = {pod.name: pod for pod in manifests.pods(self._addresses)}

    def _start(self, pod: Pod) -> None:
        options = ["--detach", "--name", self._container(pod.name), "--hostname", pod.name]
        options += ["--network", self._prefix, "--ip", self._addresses[pod.name]]
        options += [f"--network-alias={alias}" for alias in pod.aliases]
        engine.call("run", *options, *self._container_options(pod), *pod.command[1:], *pod.args)

    def run_to_end(self, objects: Sequence[Json], name: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run a pod of the manifests to its end, as `helm test` does."""
        pod = Manifests(objects, self._namespace, self._machines).bare_pod(name)
        options = ["--rm", "--name", self._container(pod.name), "--network", self._prefix]
        return engine.run(
            "run", *options, *self._container_options(pod), *pod.command[1:], *pod.args, timeout_s=timeout_s
        )

    def _container_options(self, pod: Pod) -> list[str]:
        options = ["--user", f"{pod.user}:{pod.group}", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        if pod.volumes_group is not None:
            options += ["--group-add", str(pod.volumes_group)]
        if pod.read_only:
            options.append("--read-only")
        for name, value in pod.environment.items():
            options += ["--env", f"{name}={value}"]
        for path, files in pod.files.items():
            options += ["--volume", f"{self._write(pod, path, files)}:{path}:ro"]
        for path, claim in pod.claims.items():
            options += ["--volume", f"{self._claim(claim, pod)}:{path}"]
        if pod.command:
            options += ["--entrypoint", pod.command[0]]
        return [*options, pod.image]

    def _write(self, pod: Pod, path: str, files: Files) -> Path:
        place = self._folder / "files" / pod.name / path.strip("/").replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o755)
        for name, content in files.content.items():
            file = place / name
            file.unlink(missing_ok=True)
            file.write_bytes(content)
            os.chown(file, 0, pod.volumes_group or 0)
            file.chmod(files.mode)
        return place

    def _claim(self, claim: Claim, pod: Pod) -> Path:
        """The folder of a claim; a new one belongs to the pod's group, and so do folders below it."""
        root = self._folder / "claims" / claim.name
        for place in (root, root / claim.folder):
            if not place.exists():
                place.mkdir(parents=True)
                os.chown(place, 0, pod.volumes_group or 0)
                place.chmod(0o2775)
        return root / claim.folder

    # -- what happens to pods -----------------------------------------------------------------
    def kill(self, name: str) -> None:
        """kill -9; it stays down."""
        engine.call("kill", "--signal", "KILL", self._container(name))

    def restart(self, name: str) -> None:
        """Start a container that is down, as the kubelet does."""
        engine.call("start", self._container(name))

    def lose_claim(self, name: str) -> None:
        """The disk behind a claim is gone; the next pod gets an empty one."""
        shutil.rmtree(self._folder / "claims" / name)

    def stop(self, name: str) -> None:
        """End a pod in order: its preStop command, SIGTERM, and removal."""
        pod = self.pods[name]
        if pod.pre_stop and self.running(name):
            self.exec(name, *pod.pre_stop, timeout_s=pod.grace_s)
        engine.call("stop", "--time", str(pod.grace_s), self._container(name), timeout_s=pod.grace_s + engine.CALL_S)
        engine.remove([self._container(name)])

    def exec(self, name: str, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """`kubectl exec NAME -- COMMAND`"""
        return engine.run("exec", self._container(name), *command, timeout_s=timeout_s)

    def put(self, name: str, content: str, *command: str) -> subprocess.CompletedProcess[str]:
        """`kubectl exec -i NAME -- COMMAND`, with standard input."""
        return engine.run("exec", "--interactive", self._container(name), *command, stdin=content)

    def running(self, name: str) -> bool:
        """Whether the pod's container runs."""
        return engine.call("inspect", "--format", "{{.State.Running}}", self._container(name)).strip() == "true"

    def logs(self, name: str) -> str:
        """The end of what the container said."""
        done = engine.run("logs", "--tail", "40", self._container(name))
        return done.stdout + done.stderr

    # -- probes -------------------------------------------------------------------------------
    def probe(self, name: str, which: str = "readinessProbe") -> bool:
        """Whether a probe passes now."""
        probe = self.pods[name].probes[which]
        url = f"{probe.scheme}://{self._addresses[name]}:{probe.port}{probe.path}"
        # A kubelet checks no certificate either.
        context = ssl._create_unverified_context() if probe.scheme == "https" else None
        try:
            with urllib.request.urlopen(url, timeout=_PROBE_S, context=context) as answer:
                return bool(200 <= answer.status < 400)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, names: Sequence[str] = (), timeout_s: float = READY_S) -> None:
        """Until the readiness probes of these pods (all) pass; the logs of one that is not are in the error."""
        for name in names or list(self.pods):
            self.until(
                lambda name=name: self.probe(name), f"{name} is ready", timeout_s, lambda name=name: self.logs(name)
            )

    @staticmethod
    def until(
        holds: Callable[[], bool], what: str, timeout_s: float = READY_S, story: Callable[[], str] = lambda: ""
    ) -> None:
        """Poll until a condition holds; `AssertionError` with the story after the deadline."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline_s, f"not within {timeout_s:.0f} s: {what}\n{story()}"
            time.sleep(_POLL_S)

    def _container(self, name: str) -> str:
        return f"{self._prefix}-{name}"


@contextlib.contextmanager
def played(prefix: str, folder: Path, namespace: str, machines: Sequence[str]) -> Iterator[PlayedCluster]:
    """A cluster without pods, until the block ends."""
    cluster = PlayedCluster(prefix, folder, namespace, machines)
    try:
        yield cluster
    finally:
        cluster.close()
