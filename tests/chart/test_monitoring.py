"""Alerts and dashboard reach the cluster as they are in the chart's files; nothing of them is taken for a template."""

from __future__ import annotations

import json

from chart.rendering import NAMESPACE, RELEASE, render
from chart.variants import WATCHERS
from kit import promql


def test_the_rule_and_the_dashboard_are_those_of_the_files() -> None:
    switched = {name: {"enabled": True} for name in ("prometheusRule", "dashboard")}
    rendered = render({"monitoring": switched})
    (rule,) = rendered.of("PrometheusRule").values()
    assert [each for group in rule["spec"]["groups"] for each in group["rules"]] == promql.rules()
    (dashboard,) = [
        each["data"]["copypool.json"] for each in rendered.of("ConfigMap").values() if "copypool.json" in each["data"]
    ]
    assert json.loads(dashboard)["panels"] == promql.panels()


def test_every_target_carries_the_label_that_alerts_tell_clusters_apart_by() -> None:
    values = {"monitoring": {"serviceMonitor": {"enabled": True}}, "networkPolicy": {"monitoring": WATCHERS}}
    monitors = render(values).of("ServiceMonitor").values()
    named = [
        (relabeling["targetLabel"], relabeling["replacement"])
        for monitor in monitors
        for endpoint in monitor["spec"]["endpoints"]
        for relabeling in endpoint["relabelings"]
    ]
    assert len(named) == 3
    assert set(named) == {(promql.CLUSTER, f"{NAMESPACE}/{RELEASE}")}
