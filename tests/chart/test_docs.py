"""The chart's README is what values.yaml says."""

from __future__ import annotations

import re

import yaml

from chart import docs
from chart.rendering import CHART, FULL_NAME, NAMESPACE, default_values, render


def test_the_readme_is_current() -> None:
    assert docs.PAGE.read_text("utf-8") == docs.page(), "run `make chart-docs`"


def test_every_value_is_described_at_itself_or_above() -> None:
    known = docs.meanings((CHART / "values.yaml").read_text("utf-8"))
    for entry in docs.entries(default_values(), known):
        above = [entry.key.rsplit(".", count)[0] for count in range(entry.key.count(".") + 1)]
        described = any(key in known for key in above)
        # A value that says the same under another part is described there once.
        twin = re.sub(r"^(etcd|node|coordinator|nodeGroups\.copy)\.", "", entry.key)
        assert described or any(key.endswith(f".{twin}") for key in known) or _plain(entry.key), entry.key


def _plain(key: str) -> bool:
    """Values whose name says all there is to say."""
    return key.rpartition(".")[2] in {
        "interval",
        "renewBefore",
        "readinessPath",
        "labels",
        "kind",
        "group",
        "repository",
        "pullPolicy",
        "priorityClassName",
        "nodeSelector",
        "tolerations",
        "podAnnotations",
        "resources",
        "port",
        "annotations",
        "user",
    }


def test_the_names_for_certificates_are_those_that_an_issuer_is_asked_for() -> None:
    issued = render({"tls": {"mode": "certManager", "certManager": {"issuer": {"name": "ca"}}}}).of("Certificate")
    for part in ("coordinator", "node", "etcd"):
        names = set(issued[f"{FULL_NAME}-{part}"]["spec"]["dnsNames"])
        row = next(line for line in docs.page().splitlines() if line.startswith(f"| `tls.secrets.{part}`"))
        documented = {
            name.replace("copypool", FULL_NAME).replace("NAMESPACE", NAMESPACE)
            for name in re.findall(r"`([^`]+)`", row)[1:]
        }
        assert documented == names


def test_the_values_that_the_projects_readme_shows_are_taken() -> None:
    readme = (CHART.parents[1] / "README.md").read_text("utf-8")
    (values,) = re.findall(r"```yaml\n# values.yaml\n(.*?)```", readme, re.DOTALL)
    assert render(yaml.safe_load(values)).of("StatefulSet")
