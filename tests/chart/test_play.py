"""The rendered pods run for real: containers, commands, environment, configuration, Secrets, claims, probes, TLS.

One cluster for the module, since it takes seconds to start; each test leaves it whole.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from chart.fakeapi.kinds import Json
from chart.playing.cluster import PlayedCluster, played
from chart.playing.issuer import Issuer
from chart.rendering import FULL_NAME, NAMESPACE, Rendered, render

#: Nine containers share the machine with whatever else runs there.
pytestmark = pytest.mark.timeout(300)

TAG = os.environ.get("TAG", "local")
MACHINES = ["machine-1", "machine-2", "machine-3"]
VALUES: Json = {
    "tls": {"mode": "certManager", "certManager": {"issuer": {"name": "played"}}},
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
    found = render(VALUES)
    found.objects += Issuer().secrets(found.objects)
    return found


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


def nodes_of(cluster: PlayedCluster) -> list[Json]:
    listed: list[Json] = json.loads(done(copypool(cluster, "nodes", "--json")))["items"]
    return listed


def store(cluster: PlayedCluster, path: str, content: str) -> None:
    done(cluster.put(coordinators(cluster)[0], content, "copypool", "put", "-", f"default/{path}"))


def fetch(cluster: PlayedCluster, *paths: str) -> str:
    """The content of files, one after the other."""
    return done(copypool(cluster, "cat", *(f"default/{path}" for path in paths)))


def healthy(cluster: PlayedCluster) -> bool:
    return copypool(cluster, "status").returncode == 0


def test_pods_can_do_no_more_than_the_manifests_allow(cluster: PlayedCluster) -> None:
    for name in (coordinators(cluster)[0], NODES[0]):
        assert (
            done(cluster.exec(name, "python3", "-c", "import os; print(os.getuid(), os.getgid())")) == "10001 10001\n"
        )
        assert cluster.exec(name, "python3", "-c", "open('/written', 'w')").returncode != 0


def test_the_commands_of_the_notes_work(cluster: PlayedCluster, rendered: Rendered) -> None:
    commands = re.findall(rf"kubectl -n {NAMESPACE} exec deployment/{FULL_NAME}-coordinator -- (.*)", rendered.notes)
    assert len(commands) == 3
    cluster.until(lambda: healthy(cluster), "the cluster is healthy", story=lambda: copypool(cluster, "status").stdout)
    for command in commands:
        done(cluster.exec(coordinators(cluster)[0], *shlex.split(command)))


def test_the_test_hook_passes(cluster: PlayedCluster, rendered: Rendered) -> None:
    result = cluster.run_to_end(rendered.objects, f"{FULL_NAME}-test", timeout_s=90)
    assert done(result).rstrip().endswith("PASSED: stored, copied, read from copies alone, read back and deleted")


def test_nodes_keep_to_the_hosts_that_they_run_on(cluster: PlayedCluster) -> None:
    """The failure domain is the machine, not the pod: two copies of a file are never on one machine."""
    store(cluster, "spread", "here and there")
    done(copypool(cluster, "wait", "--copied", "--timeout", "30"))
    extent = json.loads(done(copypool(cluster, "stat", "default/spread", "--json")))
    nodes = {location["node"] for segment in extent["segments"] for location in segment["locations"]}
    assert len({cluster.pods[name].machine for name in nodes}) == len(nodes) == 2


def test_a_killed_node_takes_no_file_with_it(cluster: PlayedCluster) -> None:
    contents = {f"killed/{number}": f"{number} " * 5000 for number in range(4)}
    for path, content in contents.items():
        store(cluster, path, content)
    done(copypool(cluster, "wait", "--copied", "--timeout", "30"))
    cluster.kill(PRIMARIES[0])
    assert fetch(cluster, *contents) == "".join(contents.values())
    cluster.restart(PRIMARIES[0])
    cluster.wait_ready([PRIMARIES[0]])
    assert fetch(cluster, *contents) == "".join(contents.values())


def test_a_node_whose_disk_is_lost_is_replaced_under_its_name(cluster: PlayedCluster) -> None:
    """Step 4 of the runbook node-lost: the pod's successor has the same name, an empty disk, and no identity."""
    lost = PRIMARIES[1]
    contents = {f"lost/{number}": f"{number} " * 5000 for number in range(4)}
    for path, content in contents.items():
        store(cluster, path, content)
    done(copypool(cluster, "wait", "--copied", "--timeout", "30"))
    cluster.kill(lost)
    done(copypool(cluster, "restore", "node", lost, "--yes"))
    done(copypool(cluster, "delete", "volume", f"{lost}-a", "--yes"))
    cluster.lose_claim(f"a-{lost}")
    cluster.replace(lost)

    def joined() -> bool:
        return any(node["name"] == lost and node["state"] == "up" for node in nodes_of(cluster))

    cluster.until(joined, "the successor has joined", story=lambda: cluster.logs(lost))
    assert fetch(cluster, *contents) == "".join(contents.values())


def test_every_server_lives_while_etcd_is_away(cluster: PlayedCluster) -> None:
    """Liveness that looked at others would restart the whole cluster, and with it what still serves reads."""
    members = [f"{FULL_NAME}-etcd-{ordinal}" for ordinal in range(3)]
    for member in members:
        cluster.kill(member)
    servers = [*coordinators(cluster), *NODES]
    cluster.until(
        lambda: not any(cluster.probe(name) for name in coordinators(cluster)), "coordinators notice that etcd is away"
    )
    assert all(cluster.probe(name, "livenessProbe") for name in servers)
    assert all(cluster.probe(name) for name in NODES), "what serves reads stays ready"
    result = copypool(cluster, "status")
    assert (result.returncode, "catalog" in result.stdout) == (3, True), result.stdout
    for member in members:
        cluster.restart(member)
    cluster.wait_ready()


def upgraded(before: Rendered, values: Json) -> list[Json]:
    """What an upgrade leaves on the API server: Secrets are made once (`test_lifecycle` proves it)."""
    after = [item for item in render(values).objects if item["kind"] != "Secret"]
    return [*after, *before.of("Secret").values()]


def test_groups_that_are_updated_side_by_side_fail_no_read(cluster: PlayedCluster, rendered: Rendered) -> None:
    """StatefulSets roll each for itself. Without turns a file's primary and its copy would be away together."""
    contents = {f"rolled/{number}": f"{number} " * 5000 for number in range(6)}
    for path, content in contents.items():
        store(cluster, path, content)
    done(copypool(cluster, "wait", "--copied", "--timeout", "30"))
    cluster.adopt(upgraded(rendered, {**VALUES, "commonLabels": {"version": "next"}}))

    def roll(group: list[str]) -> None:
        for name in reversed(group):
            cluster.replace(name)

    with ThreadPoolExecutor(2) as threads:
        rolls = [threads.submit(roll, group) for group in (PRIMARIES, COPIES)]
        reads = 0
        while not all(each.done() for each in rolls):
            assert fetch(cluster, *contents) == "".join(contents.values())
            reads += 1
        for each in rolls:
            each.result()
    assert reads > 2
    maintained = [node["maintenance_until_unix_s"] for node in nodes_of(cluster)]
    assert maintained == [None] * len(NODES), "each return ended what the stop had announced"


def test_every_other_pod_is_replaced_without_a_failed_read(cluster: PlayedCluster, rendered: Rendered) -> None:
    """What a rolling update does to etcd and the coordinators: one after the other, on its old claim."""
    store(cluster, "replaced", "still here " * 1000)
    others = set(cluster.pods) - set(NODES)
    objects = upgraded(rendered, {**VALUES, "commonLabels": {"version": "after that"}})
    for name in cluster.roll(objects, others):
        assert fetch(cluster, "replaced") == "still here " * 1000, name
