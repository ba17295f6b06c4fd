"""The plan of a one-machine cluster and the configuration files made of it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from copypool.dev import settings
from copypool.dev.layout import Layout, Sizes, Tuning, plan
from copypool.protocol.errors import Invalid, NotFound
from copypool.toml_text import Value, to_toml
from copypool_coordinator import config as coordinator_config
from copypool_node import config as node_config

ROOT = Path("/somewhere/cluster")


def test_every_process_has_ports_and_every_node_a_zone_of_its_own() -> None:
    sizes = Sizes(etcd=3, coordinators=2, primary_nodes=2, copy_nodes=1)
    cluster = plan(sizes, range(1000, 1000 + sizes.ports), Tuning())
    ports = [port for process in cluster.processes for port in (process.port, process.peer_port) if port]
    assert sorted([*ports, cluster.shared_port]) == list(range(1000, 1000 + sizes.ports))
    assert [(node.name, node.zone, node.pool) for node in cluster.of("node")] == [
        ("node1", "zone1", "primary"),
        ("node2", "zone2", "primary"),
        ("node3", "zone3", "copy"),
    ]


def test_several_coordinators_have_a_port_together_and_a_single_one_has_its_own() -> None:
    sizes = Sizes(coordinators=1)
    alone = plan(sizes, range(1000, 1000 + sizes.ports), Tuning())
    assert (alone.shared_port, alone.shared_url) == (0, alone.process("coordinator1").url)
    layout, cluster = Layout(ROOT), plan(Sizes(), range(1000, 1100), Tuning(), tls=True)
    assert cluster.shared_url == f"https://127.0.0.1:{cluster.shared_port}"
    for coordinator in cluster.of("coordinator"):
        text = settings.config_of(layout, cluster, coordinator)
        assert coordinator_config.parse(tomllib.loads(text), {}).shared_port == cluster.shared_port


@pytest.mark.parametrize("sizes", [Sizes(etcd=2), Sizes(coordinators=0), Sizes(copy_nodes=10)])
def test_impossible_sizes_are_refused(sizes: Sizes) -> None:
    with pytest.raises(Invalid):
        sizes.check()


def test_an_unknown_process_is_refused_with_the_names_there_are() -> None:
    cluster = plan(Sizes(), range(1000, 1100), Tuning())
    with pytest.raises(NotFound, match="coordinator1, coordinator2, node1"):
        cluster.process("node9")


def test_the_node_accepts_its_configuration() -> None:
    layout, cluster = Layout(ROOT), plan(Sizes(), range(1000, 1100), Tuning())
    node = cluster.process("node3")
    config = node_config.parse(tomllib.loads(settings.config_of(layout, cluster, node)), {})
    assert config.url == node.url
    assert config.coordinators == [coordinator.url for coordinator in cluster.of("coordinator")]
    assert (config.zone, config.host_domain) == ("zone3", "node3")
    assert [(volume.pool, volume.pool_type) for volume in config.volumes] == [("copy", "copy")]


def test_the_coordinator_accepts_its_configuration() -> None:
    layout, cluster = Layout(ROOT), plan(Sizes(etcd=3), range(1000, 1100), Tuning(grace_s=5, session_ttl_s=6))
    coordinator = cluster.process("coordinator2")
    config = coordinator_config.parse(tomllib.loads(settings.config_of(layout, cluster, coordinator)), {})
    assert config.listen_port == coordinator.port
    assert config.etcd.endpoints == [f"127.0.0.1:{member.port}" for member in cluster.of("etcd")]
    assert (config.grace_s, config.session_ttl_s) == (5, 6)


def test_etcd_members_know_each_other() -> None:
    layout, cluster = Layout(ROOT), plan(Sizes(etcd=3), range(1000, 1100), Tuning())
    configs = [json.loads(settings.config_of(layout, cluster, member)) for member in cluster.of("etcd")]
    assert len({config["initial-cluster"] for config in configs}) == 1
    for config in configs:
        assert f"{config['name']}={config['listen-peer-urls']}" in config["initial-cluster"].split(",")


def test_toml_keeps_quotes_backslashes_and_line_breaks() -> None:
    awkward: dict[str, Value] = {
        "a": 'say "hi"\\\n\ttab',
        "b": ["x", 'y"'],
        "c": {"d": True, "e": 1.5},
        "f": 7,
    }
    assert tomllib.loads(to_toml(awkward)) == awkward


def test_with_tls_every_link_has_it_and_servers_ask_each_other_for_certificates() -> None:
    layout, cluster = Layout(ROOT), plan(Sizes(etcd=3), range(1000, 1100), Tuning(), tls=True)
    assert all(process.url.startswith("https://") for process in cluster.processes)
    for process in cluster.of("coordinator") + cluster.of("node"):
        raw = tomllib.loads(settings.config_of(layout, cluster, process))
        config = coordinator_config.parse(raw, {}) if process.kind == "coordinator" else node_config.parse(raw, {})
        assert config.tls is not None
        assert config.tls.files == layout.certificate(process.name)
        assert config.tls.require_client_cert
        if process.kind == "coordinator":
            assert raw["etcd"]["cert_file"] == layout.certificate(process.name).certificate
    for member in cluster.of("etcd"):
        found = json.loads(settings.config_of(layout, cluster, member))
        for link in ("client-transport-security", "peer-transport-security"):
            assert found[link]["client-cert-auth"]
        assert "http://" not in json.dumps(found)
    assert tomllib.loads(settings.profile_of(layout, cluster))["ca_file"] == layout.certificate("x").authority
