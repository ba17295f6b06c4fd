"""The rendered pods run for real: containers, commands, environment, configuration, Secrets, claims, probes.

One cluster for the module, since it takes seconds to start; each test leaves it whole.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from chart.fakeapi.kinds import Json
from chart.playing.cluster import PlayedCluster, played
from chart.rendering import FULL_NAME, NAMESPACE, Rendered, render

TAG = os.environ.get("TAG", "local")
MACHINES = ["machine-1", "machine-2", "machine-3"]
VALUES: Json = {
    "coordinator": {"image": {"tag": TAG}, "settings": {"grace_s": 2, "session_ttl_s": 5}},
    "node": {"image": {"tag": TAG}, "settings": {"limits": {"heartbeat_s": 1}}},
    "etcd": {
        "image": {"repository": "copypool-etcd", "tag": TAG},
        "probes": {"livenessPath": "/health", "readinessPath": "/health"},
    },
}
PRIMARIES = [f"{FULL_NAME}-primary-{ordinal}" for ordinal in range(2)]
COPIES = [f"{FULL_NAME}-copy-{ordinal}" for ordinal in range(2)]
NODES = PRIMARIES + COPIES


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return render(VALUES)


@pytest.fixture(scope="module")
def shared_cluster(rendered: Rendered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayedCluster]:
    folder = tmp_path_factory.mktemp("played")
    with played(f"copypool-chart-{uuid.uuid4().hex[:8]}", folder, NAMESPACE, MACHINES) as cluster:
        cluster.apply(rendered.objects)
        cluster.wait_ready()
        yield cluster


@pytest.fixture
def cluster(shared_cluster: PlayedCluster) -> PlayedCluster:
    return shared_cluster


def coordinators(cluster: PlayedCluster) -> list[str]:
    return [name for name in cluster.pods if "-coordinator-" in name]


def copypool(cluster: PlayedCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line tool, in a coordinator's pod as the notes say."""
    return cluster.exec(coordinators(cluster)[0], "copypool", *arguments)


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr or result.stdout
    return result.stdout


def store(cluster: PlayedCluster, path: str, content: str) -> None:
    done(cluster.put(coordinators(cluster)[0], content, "copypool", "put", "-", f"default/{path}"))


def fetch(cluster: PlayedCluster, path: str) -> str:
    return done(copypool(cluster, "cat", f"default/{path}"))


def test_a_killed_node_takes_no_file_with_it(cluster: PlayedCluster) -> None:
    files = {f"killed/{number}": f"{number} " * 5000 for number in range(8)}
    for path, content in files.items():
        store(cluster, path, content)
    done(copypool(cluster, "wait", "--copied", "--timeout", "30"))
    cluster.kill(PRIMARIES[0])
    assert {path: fetch(cluster, path) for path in files} == files
    cluster.restart(PRIMARIES[0])
    cluster.wait_ready([PRIMARIES[0]])
    assert {path: fetch(cluster, path) for path in files} == files
