"""The chart as Helm's engine renders it: objects, and what can be asked of them."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

from chart.fakeapi.kinds import Json

CHART = Path(__file__).resolve().parents[2] / "helm" / "copypool"
RELEASE, NAMESPACE = "demo", "storage"
FULL_NAME = "demo-copypool"


class Rendered:
    """All objects of one rendering, and its notes."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)
        self.notes = next((text for name, text in files.items() if name.endswith("NOTES.txt")), "")
        self.objects: list[Json] = []
        for name, text in sorted(files.items()):
            if not name.endswith("NOTES.txt"):
                self.objects += [item for item in yaml.safe_load_all(text) if item]

    def of(self, kind: str) -> dict[str, Json]:
        """Objects of one kind by name."""
        return {item["metadata"]["name"]: item for item in self.objects if item["kind"] == kind}

    def one(self, kind: str, name: str) -> Json:
        """An object by kind and the end of its name: "node" for "demo-copypool-node"."""
        return self.of(kind)[f"{FULL_NAME}-{name}"]

    def pod_templates(self) -> dict[str, Json]:
        """What pods are made from, by the name of the Deployment or StatefulSet."""
        makers = {**self.of("Deployment"), **self.of("StatefulSet")}
        return {name: item["spec"]["template"] for name, item in makers.items()}

    def pods(self) -> Iterator[tuple[str, Json]]:
        """Name and pod specification of everything that makes pods."""
        for name, template in self.pod_templates().items():
            yield name, template["spec"]
        for name, item in self.of("Pod").items():
            yield name, item["spec"]


def render(values: Mapping[str, Any] | None = None, chart: Path = CHART) -> Rendered:
    """Render without a cluster; `helm_python.HelmError` as Helm itself would end."""
    return copy.deepcopy(_render(json.dumps(values or {}, sort_keys=True), chart))


@functools.lru_cache(maxsize=256)
def _render(values: str, chart: Path) -> Rendered:
    with helm_python.Chart.load(str(chart)) as loaded:
        return Rendered(loaded.render(json.loads(values), name=RELEASE, namespace=NAMESPACE))


def default_values() -> Json:
    """What values.yaml says."""
    values: Json = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    return values
