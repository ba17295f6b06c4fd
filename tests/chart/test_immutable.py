"""What an installed release can never change stays as it was in the first release, which `immutable.json` records.

A test that fails here is an upgrade that Kubernetes would refuse, or that would leave disks and Secrets behind under
their old names. The file is never made anew; only objects that are new are added to it.
"""

from __future__ import annotations

import json
from pathlib import Path

from chart.fakeapi.kinds import Json
from chart.rendering import Rendered, render

RECORDED: Json = json.loads(Path(__file__).with_name("immutable.json").read_text("utf-8"))
_FIELDS = {
    "Deployment": ["selector"],
    "StatefulSet": ["serviceName", "selector", "podManagementPolicy", "volumeClaimTemplates"],
    "PersistentVolumeClaim": ["accessModes", "storageClassName"],
    "Service": ["clusterIP"],
    "Secret": [],
}


def immutable(rendered: Rendered) -> Json:
    """The fields that can never change, by "Kind name"."""
    return {
        f"{kind} {name}": {field: item.get("spec", {}).get(field) for field in fields}
        for kind, fields in _FIELDS.items()
        for name, item in rendered.of(kind).items()
    }


def test_nothing_has_changed_that_never_can() -> None:
    now = immutable(render())
    assert {name: now.get(name) for name in RECORDED} == RECORDED


def test_every_object_is_recorded() -> None:
    assert set(immutable(render())) == set(RECORDED), "a new object belongs into immutable.json too"
