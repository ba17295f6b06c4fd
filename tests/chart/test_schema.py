"""The schema of the values is closed, and says neither more nor less than values.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import helm_python
import pytest

from chart.fakeapi.kinds import Json
from chart.rendering import CHART, default_values, render

SCHEMA: Json = json.loads((CHART / "values.schema.json").read_text("utf-8"))


def resolve(schema: Json) -> Json:
    """The schema that a reference points to; of alternatives the object."""
    while "$ref" in schema or "anyOf" in schema:
        schema = schema["anyOf"][-1] if "anyOf" in schema else SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def is_free(schema: Json) -> bool:
    """Whether keys are the user's own: labels, names, what is handed on to Kubernetes."""
    return "properties" not in schema


def paths_of_schema(schema: Json, at: str = "") -> Iterator[str]:
    for key, inner in schema.get("properties", {}).items():
        yield f"{at}{key}"
        yield from paths_of_schema(resolve(inner), f"{at}{key}.")


def paths_of_values(values: Mapping[str, Any], schema: Json, at: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{at}{key}"
        inner = resolve(schema["properties"][key])
        if isinstance(value, Mapping) and not is_free(inner):
            yield from paths_of_values(value, inner, f"{at}{key}.")


def test_schema_and_values_name_the_same_keys() -> None:
    in_schema = set(paths_of_schema(SCHEMA)) - {"global"}
    assert in_schema == set(paths_of_values(default_values(), SCHEMA))


@pytest.mark.parametrize("group", ["primary", "copy"])
def test_groups_of_nodes_have_all_their_keys_in_values(group: str) -> None:
    values = default_values()["nodeGroups"][group]
    assert set(values) == set(SCHEMA["$defs"]["nodeGroup"]["properties"])
    assert set(values["volumes"]["a"]) == set(SCHEMA["$defs"]["volume"]["properties"])


def objects_in(schema: Any, at: str = "") -> Iterator[tuple[str, Json]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield at, schema
        for key, value in schema.items():
            yield from objects_in(value, f"{at}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from objects_in(value, f"{at}/{index}")


def test_every_object_is_closed() -> None:
    handed_on = {"/$defs/kubernetes", "/$defs/kubernetesList/items", "/properties/global"}
    unclosed = {at for at, schema in objects_in(SCHEMA) if "additionalProperties" not in schema}
    assert unclosed == handed_on


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"coordinators": {}}, "coordinators"),
        ({"coordinator": {"replica": 2}}, "replica"),
        ({"coordinator": {"replicas": 0}}, "minimum"),
        ({"etcd": {"replicas": 2}}, "replicas"),
        ({"nodeGroups": {"Big": {"replicas": 1}}}, "Big"),
        ({"nodeGroups": {"etcd": {"replicas": 1, "zone": "a", "volumes": {}}}}, "etcd"),
        ({"nodeGroups": {"more": {"replicas": 1, "zone": "a", "volumes": {}}}}, "volumes"),
        ({"nodeGroups": {"primary": {"volumes": {"a": {"poolType": "Primary"}}}}}, "poolType"),
        ({"nodeGroups": {"primary": {"volumes": {"a": {"size": "large"}}}}}, "size"),
        *(
            ({"nodeGroups": {"copy": {"volumes": {name: {"pool": "p", "poolType": "copy", "size": "1Gi"}}}}}, name)
            for name in ("config", "secrets", "tls")
        ),
        *(({"commonLabels": {label: "x"}}, label) for label in ("app.kubernetes.io/instance", "copypool.io/group")),
        ({"tls": {"mode": "selfsigned"}}, "mode"),
        ({"node": {"settings": {"limits": {"a": {"b": 1}}}}}, "limits"),
        ({"etcd": {"external": {"endpoints": ["https://etcd:2379"]}}}, "endpoints"),
        ({"fullnameOverride": "a-name-that-is-longer-than-thirty-characters"}, "fullnameOverride"),
    ],
)
def test_values_that_are_wrong_are_refused_by_name(values: Json, what: str) -> None:
    with pytest.raises(helm_python.HelmError, match=what):
        render(values)
