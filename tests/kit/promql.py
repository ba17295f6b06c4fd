"""Expressions of rules and dashboards: what they name, and promtool to run them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from copypool.telemetry.metrics import Family

FILES = Path(__file__).parents[2] / "helm/copypool/files"
RULES, DASHBOARD = FILES / "alerts.yaml", FILES / "dashboard.json"

#: The label of targets that tells clusters apart; the chart's ServiceMonitors add it.
CLUSTER = "copypool_cluster"
#: Labels that Prometheus itself adds, that one, and that of histograms.
_ADDED = {"instance", "job", CLUSTER, "le"}
_METRIC = re.compile(r"\b((?:copypool|process)_[a-z0-9_]+)\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)\s*"')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def rules() -> list[dict[str, Any]]:
    """Every alerting rule."""
    content = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Every panel of the dashboard, rows too."""
    content = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = content["panels"]
    return found


def expressions() -> dict[str, str]:
    """Every expression by where it stands; Grafana's variables are filled in."""
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in panels():
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "5m")
            found[f"{panel['title']} {target['refId']}"] = re.sub(r"\$\w+", ".*", expression)
    return found


def unknown(expression: str, declared: Mapping[str, Family]) -> set[str]:
    """Metrics, and labels of them, that an expression names and no process has."""
    wrong: set[str] = set()
    allowed = set(_ADDED)
    for name, matchers in _METRIC.findall(_GROUPING.sub("", expression)):
        family = declared.get(name) or declared.get(re.sub(r"_(bucket|sum|count)$", "", name))
        if family is None or (family.name != name) != (family.kind == "histogram"):
            wrong.add(name)
            continue
        allowed |= set(family.labels)
        wrong |= {f"{name}{{{label}}}" for label in _MATCHER.findall(matchers)} - {
            f"{name}{{{label}}}" for label in (*family.labels, *_ADDED)
        }
    grouped = {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",") if label.strip()}
    return wrong | (grouped - allowed)


def named(expressions_of: Iterable[str]) -> set[str]:
    """Families that expressions go by."""
    names = {name for expression in expressions_of for name, _ in _METRIC.findall(_GROUPING.sub("", expression))}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def promtool(*arguments: str) -> tuple[int, str]:
    """Run it: exit code and what it says."""
    program = shutil.which("promtool")
    assert program, "no promtool on PATH: run `make setup`, and pytest through `make` or with .venv/bin on PATH"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr
