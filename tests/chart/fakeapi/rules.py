"""What the real API server refuses, as far as a chart can run into it. Pure; the caller turns it into a 422.

Source: the Kubernetes API reference, and the messages of its validation code.
"""

from __future__ import annotations

import functools
import json
import re
from decimal import Decimal
from typing import Any

import jsonschema
import referencing
from kubernetes_validate.utils import schema_contents

from chart.fakeapi.kinds import VERSION, Json, Kind

_STATEFUL_SET_MAY_CHANGE = {
    "minReadySeconds",
    "ordinals",
    "persistentVolumeClaimRetentionPolicy",
    "replicas",
    "revisionHistoryLimit",
    "template",
    "updateStrategy",
}
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_UNITS |= {f"{letter}i": 1024**power for power, letter in enumerate("KMGTP", start=1)}
_QUANTITY = re.compile(r"([0-9.]+)([a-zA-Z]*)")
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


class Refused(Exception):
    """The object is not taken; the message names the field."""


def check_schema(kind: Kind, item: Json, version: str = VERSION) -> None:
    """Raise `Refused` unless the object is what Kubernetes' own schema says, without unknown fields."""
    checked = {key: value for key, value in item.items() if key != "status"}
    if not kind.custom and kind.name != "Event" and (wrong := wrong_in(json.dumps(checked, sort_keys=True), version)):
        raise Refused(f"{kind.name} {_name(item)}: {wrong}")
    for labels in _labels(item):
        for key, value in labels.items():
            if not _LABEL.fullmatch(value):
                raise Refused(f"{kind.name} {_name(item)}: the label {key} has the value {value!r}")


@functools.lru_cache(maxsize=4096)
def wrong_in(item: str, version: str) -> str:
    """What is wrong with an object (JSON) by the schema of a Kubernetes version, unknown fields included; or ""."""
    content = json.loads(item)
    error = jsonschema.exceptions.best_match(
        _validator(content["kind"], content["apiVersion"], version).iter_errors(content)
    )
    return f"{'.'.join(str(part) for part in error.path)}: {error.message}" if error is not None else ""


@functools.lru_cache(maxsize=256)
def _validator(kind: str, api_version: str, version: str) -> jsonschema.Draft202012Validator:
    """What `kubernetes-validate --strict` checks by, kept: it reads all schemas of a version anew for every object."""
    group, _, served = api_version.rpartition("/")
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    name = f"{kind.lower()}-{group.partition('.')[0]}-{served}" if group else f"{kind.lower()}-{served}"
    schema = schema_contents(f"{folder}/{name}.json", version)
    registry = referencing.Registry()
    for content in (schema, _definitions(folder, version)):
        registry = referencing.Resource.from_contents(content) @ registry
    return jsonschema.Draft202012Validator(schema, registry=registry)


@functools.lru_cache(maxsize=8)
def _definitions(folder: str, version: str) -> Json:
    content: Json = schema_contents(f"{folder}/_definitions.json", version)
    return content


def check_update(kind: Kind, old: Json, new: Json) -> None:
    """Raise `Refused` when an update changes what can never change."""
    before, after = old.get("spec") or {}, new.get("spec") or {}
    if kind.name == "StatefulSet":
        changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        if forbidden := [key for key in changed if key not in _STATEFUL_SET_MAY_CHANGE]:
            raise Refused(f"StatefulSet {_name(new)}: spec: Forbidden: updates to {', '.join(forbidden)}")
    elif kind.name in ("Deployment", "Job") and before.get("selector") != after.get("selector"):
        raise Refused(f"{kind.name} {_name(new)}: spec.selector: field is immutable")
    elif kind.name == "Job" and before.get("template") != after.get("template"):
        raise Refused(f"Job {_name(new)}: spec.template: field is immutable")
    elif kind.name == "PersistentVolumeClaim":
        _check_claim(_name(new), before, after)
    elif kind.name == "Service" and before.get("clusterIP") != after.get("clusterIP"):
        raise Refused(f"Service {_name(new)}: spec.clusterIP: field is immutable")
    elif kind.name == "Secret" and old.get("type") != new.get("type"):
        raise Refused(f"Secret {_name(new)}: type: field is immutable")


def _check_claim(name: str, before: Json, after: Json) -> None:
    if _without_size(before) != _without_size(after):
        raise Refused(f"PersistentVolumeClaim {name}: spec is immutable after creation except resources.requests")
    if size_of(after) < size_of(before):
        raise Refused(f"PersistentVolumeClaim {name}: spec.resources.requests.storage: can not be less than before")


def size_of(claim_spec: Json) -> Decimal:
    """Bytes that a claim asks for."""
    text = claim_spec["resources"]["requests"]["storage"]
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _UNITS:
        raise Refused(f"{text!r} is no quantity")
    return Decimal(match[1]) * _UNITS[match[2]]


def _without_size(claim_spec: Json) -> Json:
    return {key: value for key, value in claim_spec.items() if key != "resources"}


def _labels(item: Json) -> list[dict[str, str]]:
    template: Any = (item.get("spec") or {}).get("template") or {}
    return [part["metadata"].get("labels") or {} for part in (item, template) if "metadata" in part]


def _name(item: Json) -> str:
    return str(item["metadata"].get("name"))
