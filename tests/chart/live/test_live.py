"""The chart on a real cluster: `make chart-live`, with KUBECONFIG and images that the cluster can pull.

    IMAGES=registry.example/copypool-%s:0.1.0   %s is `node` and `coordinator`
    VALUES=values.yaml                          more values, for storage classes and the like (optional)

Installs into a namespace of its own, and deletes that at the end, disks included.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import helm_python
import pytest
import yaml

from chart.fakeapi.kinds import Json
from chart.rendering import CHART

RELEASE = "copypool"
#: A cluster pulls images and makes disks first.
INSTALL_S = 900
pytestmark = pytest.mark.timeout(2 * INSTALL_S)


class Live:
    """The installed release: kubectl in its namespace, and Helm."""

    def __init__(self, namespace: str, config: helm_python.Config) -> None:
        self.namespace = namespace
        self.config = config

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 300.0) -> str:
        """Standard output; fails the test with what kubectl said."""
        done = subprocess.run(
            ["kubectl", "-n", self.namespace, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"kubectl {shlex.join(arguments)}: {done.stderr or done.stdout}"
        return done.stdout

    def copypool(self, *arguments: str, stdin: str | None = None) -> str:
        """The command line tool in a coordinator's pod."""
        option = ["-i"] if stdin is not None else []
        return self.kubectl(
            "exec", *option, f"deployment/{RELEASE}-coordinator", "--", "copypool", *arguments, stdin=stdin
        )


def values() -> Json:
    """What IMAGES and VALUES say, over the defaults."""
    pattern = os.environ.get("IMAGES", "")
    assert "%s" in pattern, "IMAGES names the images, with %s for `node` and `coordinator`"
    found: Json = yaml.safe_load(Path(os.environ["VALUES"]).read_text("utf-8")) if os.environ.get("VALUES") else {}
    for part in ("node", "coordinator"):
        repository, _, tag = (pattern % part).rpartition(":")
        found.setdefault(part, {})["image"] = {"repository": repository, "tag": tag}
    return found


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    assert os.environ.get("KUBECONFIG"), "KUBECONFIG names the cluster to install into"
    namespace = f"copypool-test-{uuid.uuid4().hex[:8]}"
    with helm_python.Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace=namespace) as config:
        installed = Live(namespace, config)
        try:
            config.install(
                str(CHART),
                RELEASE,
                values(),
                namespace=namespace,
                create_namespace=True,
                wait="watcher",
                timeout=INSTALL_S,
            )
            yield installed
        finally:
            installed.kubectl("delete", "namespace", namespace, "--ignore-not-found", timeout_s=INSTALL_S)


def test_the_test_hook_passes(live: Live) -> None:
    live.config.test(RELEASE)
    assert "PASSED" in live.kubectl("logs", f"pod/{RELEASE}-test")


def test_a_node_that_is_killed_takes_no_file_with_it(live: Live) -> None:
    content = "here and there " * 1000
    live.copypool("put", "-", "default/killed", stdin=content)
    live.copypool("wait", "--copied", "--timeout", "120")
    stat = json.loads(live.copypool("stat", "default/killed", "--json"))
    primary = stat["segments"][0]["locations"][0]["node"]
    live.kubectl("delete", "pod", primary, "--grace-period=0", "--force")
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        assert live.copypool("cat", "default/killed") == content
        time.sleep(1.0)
    live.kubectl("rollout", "status", f"statefulset/{primary.rpartition('-')[0]}", "--timeout=5m", timeout_s=330)
    live.copypool("drill", "read-from-copies")


def test_an_upgrade_fails_no_read(live: Live) -> None:
    live.copypool("put", "-", "default/upgraded", stdin="still here")
    live.copypool("wait", "--copied", "--timeout", "120")
    changed = {**values(), "commonLabels": {"upgraded": "yes"}}
    live.config.upgrade(str(CHART), RELEASE, changed, namespace=live.namespace)
    sets = [f"statefulset/{RELEASE}-{group}" for group in ("primary", "copy")]
    deadline_s = time.monotonic() + INSTALL_S
    while time.monotonic() < deadline_s:
        assert live.copypool("cat", "default/upgraded") == "still here"
        states = [json.loads(live.kubectl("get", each, "-o", "json")) for each in sets]
        if all(_rolled(state) for state in states):
            return
    pytest.fail("the StatefulSets were not rolled in time")


def _rolled(state: Json) -> bool:
    """Whether a StatefulSet's controller has seen its last change and has replaced every pod."""
    status = state["status"]
    seen = status["observedGeneration"] == state["metadata"]["generation"]
    return bool(seen and status["updateRevision"] == status["currentRevision"])
