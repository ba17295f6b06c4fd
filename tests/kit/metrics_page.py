"""A page of /metrics as Prometheus reads it, and what every such page must keep to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from copypool.telemetry.metrics import Family


def parse(text: str) -> dict[str, Metric]:
    """Families by full name (a counter's with `_total`)."""
    found = {}
    for family in text_string_to_metric_families(text):
        found[f"{family.name}_total" if family.type == "counter" else family.name] = family
    return found


def check(text: str, declared: Iterable[Family], *, partly: bool = False) -> dict[str, Metric]:
    """Every declared family (`partly`: only declared ones) with HELP, TYPE and its labels; nothing twice."""
    heads = Counter(" ".join(line.split(" ", 3)[:3]) for line in text.splitlines() if line.startswith("#"))
    assert set(heads.values()) == {1}, heads.most_common(2)
    samples = Counter(line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#"))
    assert samples.most_common(1)[0][1] == 1, samples.most_common(2)
    found = parse(text)
    wanted = {family.name: family for family in declared}
    assert found.keys() <= wanted.keys() if partly else found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for name, family in found.items():
        assert family.type == wanted[name].kind, name
        assert family.documentation == wanted[name].help, name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(wanted[name].labels), sample
    return found
