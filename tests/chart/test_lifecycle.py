"""Install, upgrade, roll back and uninstall, by Helm's own engine, against an API server that checks every object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import helm_python
import pytest

from chart.fakeapi import kinds
from chart.fakeapi.kinds import Json
from chart.fakeapi.server import ApiServer, running
from chart.fakeapi.store import Key
from chart.rendering import CHART, FULL_NAME, NAMESPACE, RELEASE

ALL_ON = {
    "tls": {"mode": "certManager", "certManager": {"issuer": {"name": "ours"}}},
    "monitoring": {
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "networkPolicy": {"monitoring": [{"namespaceSelector": {}}]},
}


class Cluster:
    """A Helm client and the API server that it talks to."""

    def __init__(self, api: ApiServer, config: helm_python.Config) -> None:
        self.api = api
        self.config = config

    def install(self, values: Json | None = None) -> None:
        """`helm install --wait`"""
        self.config.install(str(CHART), RELEASE, values or {}, namespace=NAMESPACE, wait="watcher", timeout=60)

    def upgrade(self, values: Json | None = None) -> None:
        """`helm upgrade --wait --reset-values`"""
        self.config.upgrade(str(CHART), RELEASE, values or {}, namespace=NAMESPACE, wait="watcher", timeout=60)

    def all(self, kind: str) -> dict[str, Json]:
        """Objects of a kind by name, as the server has them."""
        found = next(each for each in kinds.KINDS if each.name == kind)
        return {item["metadata"]["name"]: item for item in self.api.store.list(found, NAMESPACE)}

    def one(self, kind: str, name: str) -> Json:
        """One object by kind and the end of its name."""
        return self.all(kind)[f"{FULL_NAME}-{name}"]

    def pod_templates(self) -> dict[str, Json]:
        """What pods are made from, by the name of what makes them."""
        makers = {**self.all("Deployment"), **self.all("StatefulSet")}
        return {name: item["spec"]["template"] for name, item in makers.items()}

    def set_status(self, kind: str, name: str, status: Json) -> None:
        """Have the object's controller see something else."""
        found = next(each for each in kinds.KINDS if each.name == kind)
        item = self.api.store.get(Key(found, NAMESPACE, f"{FULL_NAME}-{name}"))
        assert item is not None
        item["status"].update(status)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with (
        running() as (api, kubeconfig),
        helm_python.Config(kubeconfig_content=kubeconfig, namespace=NAMESPACE, storage_driver="memory") as config,
    ):
        yield Cluster(api, config)


@pytest.mark.parametrize("values", [{}, ALL_ON], ids=["defaults", "everything on"])
def test_the_whole_life_of_a_release(cluster: Cluster, values: Json) -> None:
    cluster.install(values)
    assert len(cluster.all("StatefulSet")) == 3
    cluster.upgrade({**values, "coordinator": {"replicas": 3}})
    assert cluster.one("Deployment", "coordinator")["spec"]["replicas"] == 3
    cluster.config.rollback(RELEASE, version=1, wait="watcher", timeout=60)
    assert cluster.one("Deployment", "coordinator")["spec"]["replicas"] == 2
    assert [entry["revision"] for entry in cluster.config.history(RELEASE)] == [1, 2, 3]
    cluster.config.uninstall(RELEASE, wait="watcher", timeout=60)
    assert not cluster.all("StatefulSet")
    assert not cluster.all("Deployment")


def test_secrets_are_made_once_and_outlive_the_release(cluster: Cluster) -> None:
    cluster.install()
    made = {name: cluster.one("Secret", name)["data"] for name in ("keys", "join")}
    assert {len(value) > 24 for data in made.values() for value in data.values()} == {True}
    cluster.upgrade({"coordinator": {"replicas": 3}})
    assert {name: cluster.one("Secret", name)["data"] for name in made} == made
    cluster.config.uninstall(RELEASE, wait="watcher", timeout=60)
    assert {name: cluster.one("Secret", name)["data"] for name in made} == made
    cluster.install()
    assert {name: cluster.one("Secret", name)["data"] for name in made} == made


def test_a_volume_grows_by_an_upgrade(cluster: Cluster) -> None:
    cluster.install()
    cluster.upgrade(
        {"nodeGroups": {"primary": {"volumes": {"a": {"size": "1Ti"}}}}, "etcd": {"storage": {"size": "40Gi"}}}
    )
    claims = cluster.all("PersistentVolumeClaim")
    sizes = {name: item["spec"]["resources"]["requests"]["storage"] for name, item in claims.items()}
    assert sizes == {
        f"a-{FULL_NAME}-primary-0": "1Ti",
        f"a-{FULL_NAME}-primary-1": "1Ti",
        f"a-{FULL_NAME}-copy-0": "100Gi",
        f"a-{FULL_NAME}-copy-1": "100Gi",
        **{f"data-{FULL_NAME}-etcd-{member}": "40Gi" for member in range(3)},
    }
    # The template is what it was: the server refuses another one.
    template = cluster.one("StatefulSet", "primary")["spec"]["volumeClaimTemplates"][0]
    assert template["spec"]["resources"]["requests"]["storage"] == "100Gi"


def test_a_volume_never_shrinks(cluster: Cluster) -> None:
    cluster.install()
    with pytest.raises(helm_python.HelmError, match="can not be less"):
        cluster.upgrade({"nodeGroups": {"primary": {"volumes": {"a": {"size": "10Gi"}}}}})


def test_claims_outlive_the_release_and_nodes_that_are_scaled_away(cluster: Cluster) -> None:
    cluster.install()
    before = set(cluster.all("PersistentVolumeClaim"))
    cluster.upgrade({"nodeGroups": {"primary": {"replicas": 1}}})
    assert set(cluster.all("PersistentVolumeClaim")) == before
    cluster.upgrade({"nodeGroups": {"primary": {"replicas": 3}}})
    assert set(cluster.all("PersistentVolumeClaim")) == before | {f"a-{FULL_NAME}-primary-2"}
    cluster.config.uninstall(RELEASE, wait="watcher", timeout=60)
    assert set(cluster.all("PersistentVolumeClaim")) == before | {f"a-{FULL_NAME}-primary-2"}


def test_a_claim_that_its_stateful_set_made_anew_grows_too(cluster: Cluster) -> None:
    """A disk was lost and its claim deleted: the successor has the template's size, and no label of Helm's."""
    cluster.install()
    larger = {"nodeGroups": {"primary": {"volumes": {"a": {"size": "1Ti"}}}}}
    cluster.upgrade(larger)
    kind = next(each for each in kinds.KINDS if each.name == "PersistentVolumeClaim")
    key = Key(kind, NAMESPACE, f"a-{FULL_NAME}-primary-1")
    cluster.api.store.delete(key)
    template = cluster.one("StatefulSet", "primary")["spec"]["volumeClaimTemplates"][0]
    cluster.api.store.put(key, {"metadata": {}, "spec": template["spec"]})
    cluster.upgrade({**larger, "coordinator": {"replicas": 3}})
    claim = cluster.all("PersistentVolumeClaim")[key.name]
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Ti"
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_etcd_members_start_anew_only_in_a_cluster_that_never_was_ready(cluster: Cluster) -> None:
    def state() -> Any:
        return cluster.one("ConfigMap", "etcd")["data"]["initial-cluster-state"]

    cluster.install()
    assert state() == "new"
    cluster.set_status("StatefulSet", "etcd", {"readyReplicas": 1})
    cluster.upgrade()
    assert state() == "new", "a first start that went wrong may be repeated"
    cluster.set_status("StatefulSet", "etcd", {"readyReplicas": 2})
    cluster.upgrade()
    assert state() == "existing"
    cluster.set_status("StatefulSet", "etcd", {"readyReplicas": 0})
    cluster.upgrade()
    assert state() == "existing", "members that are down are members"


def test_a_lost_member_is_told_existing_by_the_runbooks_upgrade(cluster: Cluster) -> None:
    """Installed once and never upgraded, its first member lost: what the page `etcd-member-lost` begins with."""
    runbook = CHART.parent / "runbooks" / "etcd-member-lost.md"
    lines = [line.strip() for line in runbook.read_text("utf-8").splitlines()]
    (upgrade,) = [line for line in lines if line.startswith("helm upgrade copypool ")]
    (removal,) = [line for line in lines if "etcdctl member remove" in line]
    assert lines.index(upgrade) < lines.index(removal)
    assert "--reuse-values" in upgrade
    (setting,) = [word for word in upgrade.split() if word.startswith("etcd.")]
    key, _, value = setting.removeprefix("etcd.").partition("=")

    cluster.install()
    cluster.set_status("StatefulSet", "etcd", {"readyReplicas": 0})
    before = cluster.pod_templates()
    cluster.upgrade({"etcd": {key: value}})
    assert cluster.one("ConfigMap", "etcd")["data"]["initial-cluster-state"] == "existing"
    assert cluster.pod_templates() == before, "members that are well are not restarted"


def test_the_number_of_etcd_members_is_for_ever(cluster: Cluster) -> None:
    cluster.install()
    with pytest.raises(helm_python.HelmError, match="cannot be changed by an upgrade"):
        cluster.upgrade({"etcd": {"replicas": 5}})


def test_an_upgrade_without_changes_restarts_nothing(cluster: Cluster) -> None:
    cluster.install()
    before = cluster.pod_templates()
    cluster.upgrade({"nodeGroups": {"primary": {"replicas": 3}}})
    after = cluster.pod_templates()
    assert after == before


def test_the_server_refuses_what_the_real_one_refuses(cluster: Cluster) -> None:
    """The tests above prove something only if this server says no."""
    cluster.install()
    kind = next(each for each in kinds.KINDS if each.name == "StatefulSet")
    key = Key(kind, NAMESPACE, f"{FULL_NAME}-primary")
    item = cluster.one("StatefulSet", "primary")
    for path, value in (("serviceName", "other"), ("podManagementPolicy", "OrderedReady"), ("replica", 2)):
        with pytest.raises(Exception, match=f"(updates to {path}|'{path}')"):
            cluster.api.store.put(key, {**item, "spec": {**item["spec"], path: value}})
