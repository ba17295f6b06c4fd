"""What the chart renders: valid for every Kubernetes version, and what an operator relies on."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import pytest

from chart.fakeapi import rules
from chart.fakeapi.kinds import KINDS, Json
from chart.playing.pods import Manifests
from chart.rendering import CHART, FULL_NAME, NAMESPACE, RELEASE, Rendered, render
from chart.test_schema import SCHEMA, paths_of_schema, resolve
from chart.variants import GIVEN_TLS, VARIANTS
from copypool_coordinator import config as coordinator_config
from copypool_node import config as node_config

KUBERNETES = ["1.27", "1.30", "1.33", "1.37"]


def secret(name: str, *keys: str) -> Json:
    return {"kind": "Secret", "metadata": {"name": name}, "data": dict.fromkeys(keys, "")}


#: What the variants say is there already.
GIVEN_SECRETS = [secret(name) for name in ("my-keys", "tls-c", "tls-n", "tls-e", "etcd-tls", "etcd-password")]
GIVEN_SECRETS.append(secret("my-join", "join-token"))


def leaves(value: Any, at: str = "") -> set[str]:
    if isinstance(value, dict) and value:
        return {leaf for key, inner in value.items() for leaf in leaves(inner, f"{at}.{key}")}
    return {at.lstrip(".")}


def test_every_option_is_set_by_some_variant() -> None:
    in_variants = {leaf for values in VARIANTS.values() for leaf in leaves(values)}
    for path in set(paths_of_schema(SCHEMA)) - {"global"}:
        schema = SCHEMA
        for part in path.split("."):
            schema = resolve(schema["properties"][part])
        if "properties" not in schema:
            assert any(leaf == path or leaf.startswith(f"{path}.") for leaf in in_variants), path


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Rendered:
    return render(VARIANTS[request.param])


def test_helm_lints_it() -> None:
    result = helm_python.lint(str(CHART), strict=True)
    assert not result["errors"]
    assert [message["error"] for message in result["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
def test_valid_in_every_kubernetes_version(variant: Rendered, version: str) -> None:
    kinds = {kind.name: kind for kind in KINDS}
    for item in variant.objects:
        rules.check_schema(kinds[item["kind"]], item, version)


def test_every_name_that_is_used_exists(variant: Rendered) -> None:
    """Configuration, claims, service accounts and Services; Secrets that the chart makes itself."""
    given = {item["metadata"]["name"] for item in GIVEN_SECRETS}
    made_by_issuer = {item["spec"]["secretName"] for item in variant.of("Certificate").values()}
    for name, pod in variant.pods():
        assert pod["serviceAccountName"] in variant.of("ServiceAccount"), name
        text = json.dumps(pod)
        for volume in pod.get("volumes", []):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in variant.of("ConfigMap"), name
            for source in (*volume.get("projected", {}).get("sources", []), volume):
                secret = source.get("secret", {})
                used = secret.get("secretName") or secret.get("name")
                assert used is None or used in {*variant.of("Secret"), *given, *made_by_issuer}, name
        mounts = [mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]]
        claims = {
            template["metadata"]["name"]
            for item in variant.of("StatefulSet").values()
            if item["metadata"]["name"] == name
            for template in item["spec"]["volumeClaimTemplates"]
        }
        assert set(mounts) == claims | {volume["name"] for volume in pod.get("volumes", [])}, text


def test_names_of_a_pods_volumes_differ(variant: Rendered) -> None:
    """Claims of a StatefulSet replace volumes of the same name, silently."""
    for name, pod in variant.pods():
        names = [volume["name"] for volume in pod.get("volumes", [])]
        stateful_set = variant.of("StatefulSet").get(name, {"spec": {"volumeClaimTemplates": []}})
        names += [template["metadata"]["name"] for template in stateful_set["spec"]["volumeClaimTemplates"]]
        assert len(set(names)) == len(names), name


@pytest.mark.parametrize("component", ["coordinator", "node", "etcd"])
def test_who_watches_reaches_every_port_that_is_scraped(component: str) -> None:
    """A ServiceMonitor is of no use for a port that a NetworkPolicy keeps closed."""
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    rendered = render({"networkPolicy": {"monitoring": [peer]}, "monitoring": {"serviceMonitor": {"enabled": True}}})
    (endpoint,) = rendered.one("ServiceMonitor", component)["spec"]["endpoints"]
    ports = {port["name"]: port["targetPort"] for port in rendered.one("Service", component)["spec"]["ports"]}
    policy = rendered.one("NetworkPolicy", component)["spec"]["ingress"]
    open_ports = {port["port"] for rule in policy if peer in rule["from"] for port in rule["ports"]}
    assert open_ports == {ports[endpoint["port"]]}


@pytest.mark.parametrize(
    ("tls", "required"),
    [
        (GIVEN_TLS, False),
        ({**GIVEN_TLS, "requireClientCert": True}, True),
        ({"mode": "certManager", "certManager": {"issuer": {"name": "ca"}}}, True),
        ({"mode": "certManager", "certManager": {"issuer": {"name": "ca"}}, "requireClientCert": False}, False),
    ],
)
def test_servers_ask_each_other_for_certificates(tls: Json, required: bool) -> None:
    rendered = render({"tls": tls})
    text = rendered.one("ConfigMap", "coordinator")["data"]["coordinator.toml"]
    environment = {"COPYPOOL_COORDINATOR_NAME": "c1", "COPYPOOL_COORDINATOR_ADVERTISE_URL": "https://10.0.0.1:7600"}
    servers = [coordinator_config.parse(tomllib.loads(text), environment), *node_configs(rendered).values()]
    assert {server.tls.require_client_cert for server in servers if server.tls is not None} == {required}


def test_etcd_resolves_names_by_every_port_of_dns() -> None:
    """Rules see a connection after its address was translated: DNS of some distributions listens on 5353."""
    rules_out = render().one("NetworkPolicy", "etcd")["spec"]["egress"]
    ports = [(port["protocol"], port["port"]) for rule in rules_out if "to" not in rule for port in rule["ports"]]
    assert sorted(ports) == [("TCP", 53), ("TCP", 5353), ("UDP", 53), ("UDP", 5353)]


def test_services_and_policies_select_pods(variant: Rendered) -> None:
    pods = [
        item["spec"]["template"]["metadata"]["labels"]
        for item in variant.objects
        if item["kind"] in ("Deployment", "StatefulSet")
    ]

    def selected(labels: Json) -> bool:
        return any(labels.items() <= pod.items() for pod in pods)

    for item in variant.of("Service").values():
        assert selected(item["spec"]["selector"])
    for kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        for item in variant.of(kind).values():
            assert selected(item["spec"]["selector"]["matchLabels"])
    for item in variant.of("NetworkPolicy").values():
        assert selected(item["spec"]["podSelector"]["matchLabels"])
    for item in variant.of("StatefulSet").values():
        assert item["spec"]["serviceName"] in variant.of("Service")


def test_claims_are_those_that_the_stateful_sets_look_for(variant: Rendered) -> None:
    wanted = {
        f"{template['metadata']['name']}-{name}-{ordinal}"
        for name, item in variant.of("StatefulSet").items()
        for template in item["spec"]["volumeClaimTemplates"]
        for ordinal in range(item["spec"]["replicas"])
    }
    claims = variant.of("PersistentVolumeClaim")
    assert set(claims) == wanted
    assert {item["metadata"]["annotations"]["helm.sh/resource-policy"] for item in claims.values()} <= {"keep"}


def test_pods_have_no_rights(variant: Rendered) -> None:
    for name, pod in variant.pods():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]


def test_nothing_is_kept_on_what_ends_with_a_pod(variant: Rendered) -> None:
    for name, pod in variant.pods():
        assert not [volume for volume in pod.get("volumes", []) if {"emptyDir", "hostPath"} & set(volume)], name


def node_configs(rendered: Rendered) -> dict[str, node_config.NodeConfig]:
    """What every node makes of its file and its environment, by the name of its pod."""
    issued = [secret(item["spec"]["secretName"]) for item in rendered.of("Certificate").values()]
    manifests = Manifests([*rendered.objects, *GIVEN_SECRETS, *issued], NAMESPACE, ["machine-1"])
    found = {}
    for name, template, controller, service in manifests.identities():
        if "copypool.io/group" in template["metadata"]["labels"]:
            pod = manifests.pod(name, template, controller, service, "machine-1", "10.0.0.1")
            text = pod.files["/etc/copypool/config"].content["node.toml"].decode()
            found[name] = node_config.parse(tomllib.loads(text), pod.environment)
            folders = {found[name].state_dir, *(volume.path for volume in found[name].volumes)}
            assert folders == set(pod.claims)
    return found


def test_nodes_take_their_configuration(variant: Rendered) -> None:
    """By the program's own check; volume names differ over the whole cluster."""
    configs = node_configs(variant)
    assert all(config.name == pod for pod, config in configs.items())
    assert {config.host_domain for config in configs.values()} <= {"machine-1"}
    volumes = [volume.name for config in configs.values() for volume in config.volumes]
    assert len(set(volumes)) == len(volumes)


def test_coordinators_take_their_configuration(variant: Rendered) -> None:
    files = next(item for item in variant.of("ConfigMap").values() if "coordinator.toml" in item["data"])["data"]
    environment = {
        "COPYPOOL_COORDINATOR_NAME": "demo-copypool-coordinator-5d4f8c7b9-x2x4z",
        "COPYPOOL_COORDINATOR_ADVERTISE_URL": "http://10.0.0.1:7600",
    }
    config = coordinator_config.parse(tomllib.loads(files["coordinator.toml"]), environment)
    assert config.listen_port == 7600
    assert tomllib.loads(files["profile.toml"])["coordinators"][1].startswith(("http://", "https://"))


def test_settings_reach_the_programs() -> None:
    rendered = render(VARIANTS["pods"])
    text = rendered.one("ConfigMap", "coordinator")["data"]["coordinator.toml"]
    parsed = tomllib.loads(text)
    assert (parsed["grace_s"], parsed["limits"]) == (60, {"requests": 100})
    assert node_configs(rendered)[f"{FULL_NAME}-copy-1"].limits.heartbeat_s == 1.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coordinator": {"settings": {"listen_port": 1}}}, "coordinator.settings.listen_port is set by the chart"),
        ({"node": {"settings": {"zone": "x"}}}, "node.settings.zone is set by the chart"),
        ({"node": {"terminationGracePeriodSeconds": 60}}, "30 more than node.stopWaitSeconds"),
        ({"tls": {"mode": "certManager"}}, "tls.certManager.issuer.name"),
        ({"tls": {"mode": "secrets"}}, "tls.secrets"),
        ({"tls": {"requireClientCert": True}}, "tls.requireClientCert needs certificates"),
        ({"monitoring": {"serviceMonitor": {"enabled": True}}}, "networkPolicy.monitoring"),
        ({"etcd": {"enabled": False}}, "etcd.external.endpoints"),
        ({"etcd": {"enabled": False, "external": {"endpoints": ["a:1"], "passwordSecret": "x"}}}, "etcd.external.user"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(values: Json, message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values)


def test_the_defaults_are_the_least_that_survives_a_machine() -> None:
    rendered = render()
    replicas = {
        name.removeprefix(f"{FULL_NAME}-"): item["spec"]["replicas"]
        for name, item in rendered.of("StatefulSet").items()
    }
    assert replicas == {"etcd": 3, "primary": 2, "copy": 2}
    assert rendered.one("Deployment", "coordinator")["spec"]["replicas"] == 2
    pools = {volume.pool_type for config in node_configs(rendered).values() for volume in config.volumes}
    assert pools == {"primary", "copy"}


def test_only_coordinators_hold_the_keys() -> None:
    rendered = render()
    for name, pod in rendered.pods():
        holds = f"{FULL_NAME}-keys" in json.dumps(pod)
        assert holds == (name in (f"{FULL_NAME}-coordinator", f"{FULL_NAME}-test")), name


def test_a_budget_covers_all_nodes_together() -> None:
    """A file's primary and its copy are in different groups: with a budget for each both could be evicted at once."""
    budget = render().one("PodDisruptionBudget", "node")["spec"]
    assert budget["maxUnavailable"] == 1
    assert "copypool.io/group" not in budget["selector"]["matchLabels"]


def test_probes_never_ask_whether_others_are_well() -> None:
    """A liveness probe that fails while etcd or the coordinators are away would kill what still serves reads."""
    for name, pod in render().pods():
        for container in pod["containers"]:
            if "livenessProbe" in container:
                assert container["livenessProbe"]["httpGet"]["path"] == "/livez", name


def test_more_nodes_change_no_pod() -> None:
    few, many = (render({"nodeGroups": {"primary": {"replicas": count}}}) for count in (2, 5))
    assert (
        few.one("StatefulSet", "primary")["spec"]["template"] == many.one("StatefulSet", "primary")["spec"]["template"]
    )


def test_a_changed_setting_restarts_its_pods_alone() -> None:
    before, after = (render(values).pod_templates() for values in ({}, {"node": {"settings": {"log_level": "debug"}}}))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{FULL_NAME}-primary", f"{FULL_NAME}-copy"}


def test_a_new_chart_version_restarts_nothing(tmp_path: Path) -> None:
    newer = tmp_path / "copypool"
    shutil.copytree(CHART, newer)
    chart = (newer / "Chart.yaml").read_text("utf-8")
    (newer / "Chart.yaml").write_text(chart.replace("\nversion: ", "\nversion: 9"), "utf-8")
    assert render().pod_templates() == render(chart=newer).pod_templates()


def test_notes_end_with_commands() -> None:
    notes = render().notes
    assert f"kubectl -n {NAMESPACE} exec deployment/{FULL_NAME}-coordinator -- copypool status" in notes
    assert "WARNING: connections are not encrypted" in notes
    assert "WARNING: connections" not in render({"tls": GIVEN_TLS}).notes
    command = f"helm upgrade {RELEASE} CHART -n {NAMESPACE} --reuse-values --set etcd.initialClusterState=existing"
    assert command in notes
    for etcd in ({"initialClusterState": "existing"}, {"enabled": False, "external": {"endpoints": ["a:1"]}}):
        assert "initialClusterState" not in render({"etcd": etcd}).notes


def test_every_server_is_called_by_a_name_that_its_certificate_holds() -> None:
    """Coordinators advertise the address of their pod, which no certificate can name beforehand."""
    issuer = {"name": "ours", "kind": "Issuer"}
    rendered = render({"tls": {"mode": "certManager", "certManager": {"issuer": issuer}}})
    held = [
        set(item["spec"]["dnsNames"]) for name, item in rendered.of("Certificate").items() if not name.endswith("-etcd")
    ]
    text = rendered.one("ConfigMap", "coordinator")["data"]["coordinator.toml"]
    environment = {"COPYPOOL_COORDINATOR_NAME": "c1", "COPYPOOL_COORDINATOR_ADVERTISE_URL": "https://10.0.0.1:7600"}
    servers = [coordinator_config.parse(tomllib.loads(text), environment), *node_configs(rendered).values()]
    for tls in (server.tls for server in servers):
        assert tls is not None
        assert all(tls.server_name in names for names in held)
        assert tls.require_client_cert
    assert len(held) == 2
