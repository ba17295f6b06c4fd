"""The alert rules and the dashboard: run by promtool, and held against the metrics that the processes have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from copypool.telemetry.metrics import Family
from kit import metrics_reference, promql

DECLARED: dict[str, Family] = {
    family.name: family for families in metrics_reference.FAMILIES.values() for family in families
}
MIB = 1024 * 1024

#: A cluster in which nothing is wrong, as two coordinators and a node tell it: series -> values, one a minute.
CLUSTER = {
    "copypool_healthy": "1",
    "copypool_lost_files": "0",
    "copypool_unavailable_files": "0",
    "copypool_doubtful_files": "0",
    "copypool_under_protected_extents": "0",
    "copypool_damaged_locations": "0",
    "copypool_scrub_oldest_seconds": "86400",
    "copypool_scrub_period_seconds": "1209600",
    'copypool_nodes{state="away"}': "0",
    "copypool_brake_engaged": "0",
    "copypool_catalog_down": "0",
    "copypool_etcd_members": "3",
    "copypool_etcd_members_up": "3",
    "copypool_etcd_alarms": "0",
    "copypool_etcd_db_bytes": f"{100 * MIB}",
    "copypool_etcd_quota_bytes": f"{2048 * MIB}",
    "copypool_etcd_quota_days": "400",
    'copypool_pool_debt_oldest_seconds{pool="copy"}': "2",
    'copypool_pool_window_open{pool="copy"}': "1",
    "copypool_coordinator_mirror_age_seconds": "1",
    'copypool_coordinator_requests_total{route="/rpc/lookup",code="ok"}': "0+6000x",
    'copypool_coordinator_requests_total{route="/rpc/lookup",code="not_found"}': "0+3000x",
    'copypool_coordinator_fill_ratio{bound="requests"}': "0.1",
    "copypool_coordinator_leader": "0",
}
NODE = {
    "copypool_node_session_alive": "1",
    "copypool_node_lease_margin_seconds": "12",
    'copypool_node_volume_free_bytes{volume="n1-a",pool="primary"}': f"{500 * MIB}",
    'copypool_node_volume_total_bytes{volume="n1-a",pool="primary"}': f"{1000 * MIB}",
    'copypool_node_volume_writable{volume="n1-a",pool="primary"}': "1",
    'copypool_node_volume_safe_mode{volume="n1-a",pool="primary"}': "0",
    'copypool_node_volume_probe_age_seconds{volume="n1-a",pool="primary"}': "2",
    "copypool_node_damaged_extents_total": "1",
    'copypool_node_write_sync_seconds_bucket{le="0.01"}': "0+99x",
    'copypool_node_write_sync_seconds_bucket{le="1"}': "0+100x",
    'copypool_node_write_sync_seconds_bucket{le="+Inf"}': "0+100x",
    'copypool_node_requests_total{route="PUT files",code="ok"}': "0+6000x",
    'copypool_node_requests_total{route="PUT files",code="conflict"}': "0+3000x",
    'copypool_node_fill_ratio{bound="queue_records"}': "0.2",
}
PROCESS = {
    'copypool_build_info{version="0.1.0"}': "1",
    'copypool_event_loop_lag_seconds_bucket{le="0.005"}': "0+240x",
    'copypool_event_loop_lag_seconds_bucket{le="1"}': "0+240x",
    'copypool_event_loop_lag_seconds_bucket{le="+Inf"}': "0+240x",
    "process_open_fds": "100",
    "process_max_fds": "1024",
    'copypool_certificate_expires_time_seconds{use="server"}': "7776000",
    'copypool_certificate_files_refused{use="server"}': "0",
}
HOSTS = {"c1": (CLUSTER, "coordinator"), "c2": (CLUSTER, "coordinator"), "n1": (NODE, "node")}


class Case(NamedTuple):
    """What changes, and which alerts fire from when on; until then, none."""

    changes: dict[str, str]  #: host and series -> values
    fires: set[str]
    from_minute: int
    quiet_until_minute: int = 0  #: after which they may be firing already


NODE_VOLUME = '{volume="n1-a",pool="primary"}'
CASES = [
    Case({"c1 copypool_lost_files": "3"}, {"CopypoolFilesLost"}, 3),
    Case({"c2 copypool_unavailable_files": "3"}, {"CopypoolFilesUnavailable"}, 4, 1),
    Case({"c1 copypool_doubtful_files": "1"}, {"CopypoolFilesDoubtful"}, 12, 9),
    Case({"c1 copypool_under_protected_extents": "1"}, {"CopypoolNotProtected"}, 32, 29),
    Case({"c1 copypool_healthy": "0"}, {"CopypoolNotHealthy"}, 62, 59),
    Case({'c1 copypool_pool_debt_oldest_seconds{pool="copy"}': "1000"}, {"CopypoolRecoveryPointOld"}, 17, 14),
    Case(
        {
            'c1 copypool_pool_debt_oldest_seconds{pool="copy"}': "50000",
            'c1 copypool_pool_window_open{pool="copy"}': "0",
            'c2 copypool_pool_window_open{pool="copy"}': "0",
        },
        set(),
        60,
    ),
    Case({"c1 copypool_damaged_locations": "2"}, {"CopypoolDamageStays"}, 62, 59),
    Case({"n1 copypool_node_damaged_extents_total": "0+1x"}, {"CopypoolDamageFound"}, 30),
    Case({"c1 copypool_scrub_oldest_seconds": "2000000"}, {"CopypoolScrubLate"}, 62, 59),
    Case({"c1 copypool_healthy": "_", "c2 copypool_healthy": "_"}, {"CopypoolSilent"}, 7, 4),
    Case({'c1 copypool_nodes{state="away"}': "1"}, {"CopypoolNodeAway"}, 12, 9),
    Case({"c1 copypool_brake_engaged": "1"}, {"CopypoolBrakeEngaged"}, 12, 9),
    Case({"n1 copypool_node_lease_margin_seconds": "3"}, {"CopypoolSessionEnding"}, 3),
    Case(
        {"n1 copypool_node_lease_margin_seconds": "0", "n1 copypool_node_session_alive": "0"},
        set(),
        30,
    ),
    Case({f"n1 copypool_node_volume_free_bytes{NODE_VOLUME}": f"{50 * MIB}"}, {"CopypoolVolumeFillsUp"}, 32, 29),
    Case({f"n1 copypool_node_volume_free_bytes{NODE_VOLUME}": "0"}, {"CopypoolPoolFull"}, 10, 1),
    Case({f"n1 copypool_node_volume_writable{NODE_VOLUME}": "0"}, {"CopypoolVolumeNotWritable"}, 17, 14),
    Case({f"n1 copypool_node_volume_probe_age_seconds{NODE_VOLUME}": "40"}, {"CopypoolDiskHangs"}, 3),
    Case({f"n1 copypool_node_volume_safe_mode{NODE_VOLUME}": "1"}, {"CopypoolSafeMode"}, 3),
    Case({'n1 copypool_node_write_sync_seconds_bucket{le="0.01"}': "0+90x"}, {"CopypoolFsyncSlow"}, 18, 14),
    Case({"c2 copypool_catalog_down": "1"}, {"CopypoolCatalogDown"}, 3),
    Case({"c1 copypool_etcd_members_up": "2"}, {"CopypoolEtcdMemberLost"}, 7, 4),
    Case({"c1 copypool_etcd_alarms": "1"}, {"CopypoolEtcdAlarm"}, 3),
    Case({"c1 copypool_etcd_quota_days": "9"}, {"CopypoolEtcdFillsUp"}, 62, 59),
    Case({"c1 copypool_etcd_db_bytes": f"{1900 * MIB}"}, {"CopypoolEtcdNearQuota"}, 12, 9),
    Case({"c1 copypool_coordinator_leader": "0"}, {"CopypoolNoLeader"}, 3),
    Case({"c2 copypool_coordinator_mirror_age_seconds": "20"}, {"CopypoolMemoryOld"}, 4, 1),
    Case(
        {'n1 copypool_node_requests_total{route="PUT files",code="no_space"}': "0+900x"},
        {"CopypoolRequestsFail"},
        15,
        9,
    ),
    Case(
        {'c1 copypool_coordinator_requests_total{route="/rpc/lookup",code="bug"}': "0x5 1x"},
        {"CopypoolBug"},
        7,
        5,
    ),
    Case({'n1 copypool_node_fill_ratio{bound="queue_records"}': "0.9"}, {"CopypoolQueueFull"}, 7, 4),
    Case({'c1 copypool_coordinator_fill_ratio{bound="requests"}': "1"}, {"CopypoolQueueFull"}, 7, 4),
    Case({'n1 copypool_event_loop_lag_seconds_bucket{le="0.005"}': "0+200x"}, {"CopypoolLoopLags"}, 14, 9),
    Case({"n1 process_open_fds": "900"}, {"CopypoolFewDescriptors"}, 12, 9),
    Case(
        {'n1 copypool_certificate_expires_time_seconds{use="server"}': "500000"},
        {"CopypoolCertificateExpires"},
        62,
        59,
    ),
    Case(
        {'n1 copypool_certificate_expires_time_seconds{use="server"}': "3000"},
        {"CopypoolCertificateExpires", "CopypoolCertificateExpired"},
        62,
        4,
    ),
    Case({'n1 copypool_certificate_files_refused{use="server"}': "1"}, {"CopypoolCertificateRefused"}, 12, 9),
    Case(
        {'n1 copypool_build_info{version="0.1.0"}': "_", 'n1 copypool_build_info{version="0.2.0"}': "1"},
        {"CopypoolVersionsMixed"},
        1445,
        1435,
    ),
]


def _series(changes: dict[str, str], minutes: int, cluster: str = "") -> list[dict[str, str]]:
    world = {f"{host} {name}": values for host, (of, _) in HOSTS.items() for name, values in (of | PROCESS).items()}
    world["c1 copypool_coordinator_leader"] = "1"
    found = []
    for key, values in (world | changes).items():
        host, _, series = key.partition(" ")
        name, _, labels = series.rstrip("}").partition("{")
        added = f'instance="{cluster}{host}",job="{HOSTS[host][1]}"'
        if cluster:
            added += f',{promql.CLUSTER}="{cluster}"'
        inner = f"{labels},{added}" if labels else added
        text = f"{values}{minutes}" if values.endswith("x") else f"{values}x{minutes}"
        found.append({"series": f"{name}{{{inner}}}", "values": text})
    return found


def _test(case: Case) -> dict[str, Any]:
    expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
    wanted = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(case.fires)]
    looks = [{"expr": f"{expression} > bool 0", "eval_time": f"{case.from_minute}m", "exp_samples": wanted}]
    if case.fires:
        looks.append({"expr": expression, "eval_time": f"{case.quiet_until_minute}m", "exp_samples": []})
    return {
        "name": f"{sorted(case.fires)} {case.changes}",
        "interval": "1m",
        "input_series": _series(case.changes, case.from_minute + 1),
        "promql_expr_test": looks,
    }


def _test_beside(case: Case) -> dict[str, Any]:
    """The case in cluster `sick`, of the alerts of which each names it, seen with cluster `well` by one Prometheus."""
    wanted = [{"labels": f'{{alertname="{name}",{promql.CLUSTER}="sick"}}', "value": 1} for name in sorted(case.fires)]
    expression = f'count by (alertname, {promql.CLUSTER}) (ALERTS{{alertstate="firing"}}) > bool 0'
    minutes = case.from_minute + 1
    return {
        "name": f"beside a well cluster: {sorted(case.fires)} {case.changes}",
        "interval": "1m",
        "input_series": _series(case.changes, minutes, "sick") + _series({}, minutes, "well"),
        "promql_expr_test": [{"expr": expression, "eval_time": f"{case.from_minute}m", "exp_samples": wanted}],
    }


def _run(tmp_path: Path, cases: list[Case], made: Callable[[Case], dict[str, Any]] = _test) -> tuple[int, str]:
    file = tmp_path / "rules_test.json"
    tests = [made(case) for case in cases]
    file.write_text(json.dumps({"rule_files": [str(promql.RULES)], "evaluation_interval": "1m", "tests": tests}))
    return promql.promtool("test", "rules", str(file))


def test_the_rules_are_valid() -> None:
    code, said = promql.promtool("check", "rules", str(promql.RULES))
    assert code == 0, said
    assert f"{len(promql.rules())} rules found" in said


def test_a_well_cluster_alerts_nobody(tmp_path: Path) -> None:
    code, said = _run(tmp_path, [Case({}, set(), 180)])
    assert code == 0, said


def test_each_alert_fires_when_it_should_alone_and_not_before(tmp_path: Path) -> None:
    assert {name for case in CASES for name in case.fires} == {rule["alert"] for rule in promql.rules()}
    code, said = _run(tmp_path, CASES)
    assert code == 0, said


def test_each_alert_fires_for_its_own_cluster_and_no_other(tmp_path: Path) -> None:
    code, said = _run(tmp_path, CASES, _test_beside)
    assert code == 0, said


def test_clusters_of_different_sizes_and_releases_alert_nobody(tmp_path: Path) -> None:
    """What one cluster has is no measure of another."""
    other = {
        "c1 copypool_etcd_members": "5",
        "c2 copypool_etcd_members": "5",
        "c1 copypool_etcd_members_up": "5",
        "c2 copypool_etcd_members_up": "5",
    } | {
        f'{host} copypool_build_info{{version="{version}"}}': values
        for host in HOSTS
        for version, values in (("0.1.0", "_"), ("0.2.0", "1"))
    }
    series = _series({}, 1501, "old") + _series(other, 1501, "new")
    look = {"expr": 'ALERTS{alertstate="firing"}', "eval_time": "1500m", "exp_samples": []}
    test = {"name": "two clusters", "interval": "1m", "input_series": series, "promql_expr_test": [look]}
    code, said = _run(tmp_path, [Case({}, set(), 0)], lambda _: test)
    assert code == 0, said


def test_a_cluster_of_which_nothing_is_left_is_missed(tmp_path: Path) -> None:
    gone = [each | {"values": "1x30 stale"} for each in _series({}, 0, "sick") if "build_info" in each["series"]]
    look = {
        "expr": f'count by (alertname, {promql.CLUSTER}) (ALERTS{{alertstate="firing"}}) > bool 0',
        "eval_time": "60m",
        "exp_samples": [{"labels": f'{{alertname="CopypoolSilent",{promql.CLUSTER}="sick"}}', "value": 1}],
    }
    series = gone + _series({}, 61, "well")
    test = {"name": "nothing left", "interval": "1m", "input_series": series, "promql_expr_test": [look]}
    code, said = _run(tmp_path, [Case({}, set(), 0)], lambda _: test)
    assert code == 0, said


def test_a_wrong_expectation_is_noticed(tmp_path: Path) -> None:
    code, said = _run(tmp_path, [Case({"c1 copypool_lost_files": "3"}, {"CopypoolNodeAway"}, 30)])
    assert code != 0, said


@pytest.mark.parametrize("rule", promql.rules(), ids=lambda rule: rule["alert"])
def test_a_rule_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Copypool")
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert rule["annotations"].keys() == {"summary", "runbook"}
    assert re.fullmatch(r"helm/runbooks/[a-z-]+\.md", rule["annotations"]["runbook"])
    labels = {label for name in promql.named([rule["expr"]]) for label in DECLARED[name].labels} | {"instance", "job"}
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels


@pytest.mark.parametrize("where", promql.expressions())
def test_an_expression_names_only_what_there_is(where: str) -> None:
    assert promql.unknown(promql.expressions()[where], DECLARED) == set()


@pytest.mark.parametrize(
    "expression",
    [
        "copypool_no_such_total",
        'copypool_lost_files{volume="x"}',
        "sum by (volume) (copypool_lost_files)",
        "rate(copypool_node_write_sync_seconds[5m])",
        "copypool_lost_files_bucket",
        "max(copypool_healthy) or process_virtual_memory_bytes",
    ],
)
def test_a_wrong_name_or_label_is_found(expression: str) -> None:
    assert promql.unknown(expression, DECLARED)


def test_every_expression_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{number}", "expr": expression}
        for number, expression in enumerate(promql.expressions().values())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    code, said = promql.promtool("check", "rules", str(file))
    assert code == 0, said


def test_the_panels_have_their_own_ids_and_places() -> None:
    panels = promql.panels()
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
