"""The reference pages of all metrics, made from what the processes declare. Run as a module it writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from copypool.telemetry.metrics import Family, reference
from copypool_coordinator import metrics as of_coordinator
from copypool_node import metrics as of_node

ROOT = Path(__file__).parents[2]

_HEADS = {
    "node": "Metrics of `copypool-node`, at `GET /metrics` of every node",
    "coordinator": "Metrics of `copypool-coordinator`, at `GET /metrics` of every coordinator",
}
_NOTE = {
    "node": (
        "Every page has every family, with samples once there is something to tell. Labels are bounded: routes, error "
        "codes, names of volumes and pools."
    ),
    "coordinator": (
        "`copypool_coordinator_*` is about one process. `copypool_*` is about the cluster and the same on every "
        "coordinator, so take `max` over them; it is left out while it cannot be told within 2 s, and at most 5 s old. "
        "Labels are bounded: routes, error codes, pools, numbers of namespaces (see `copypool namespace list`; "
        "/metrics asks for no token): of those, at most 256, which wait longest for their copies."
    ),
}
FAMILIES: dict[str, Sequence[Family]] = {"node": of_node.FAMILIES, "coordinator": of_coordinator.FAMILIES}


def page(part: str) -> str:
    """Content of `<part>/METRICS.md`."""
    made_by = "Made by `make reference` of what the code declares; a test compares."
    return f"# {_HEADS[part]}\n\n{_NOTE[part]}\n{made_by}\n\n{reference(FAMILIES[part])}"


if __name__ == "__main__":
    for part in FAMILIES:
        (ROOT / part / "METRICS.md").write_text(page(part), encoding="utf-8")
