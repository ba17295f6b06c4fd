"""Which kinds the server has, and how it tells clients about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

VERSION = "1.31"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object and where it is served."""

    group: str  #: empty: the core group
    version: str
    plural: str
    name: str
    namespaced: bool = True
    custom: bool = False  #: a custom resource: its schema is not known here

    @property
    def api_version(self) -> str:
        """As it stands in objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Path of its group, without a leading slash."""
        return f"apis/{self.group}/{self.version}" if self.group else f"api/{self.version}"


KINDS = [
    Kind("", "v1", "namespaces", "Namespace", namespaced=False),
    Kind("", "v1", "configmaps", "ConfigMap"),
    Kind("", "v1", "events", "Event"),
    Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Kind("", "v1", "pods", "Pod"),
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "serviceaccounts", "ServiceAccount"),
    Kind("", "v1", "services", "Service"),
    Kind("apps", "v1", "deployments", "Deployment"),
    Kind("apps", "v1", "replicasets", "ReplicaSet"),
    Kind("apps", "v1", "statefulsets", "StatefulSet"),
    Kind("batch", "v1", "jobs", "Job"),
    Kind("batch", "v1", "cronjobs", "CronJob"),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    Kind("cert-manager.io", "v1", "certificates", "Certificate", custom=True),
    Kind("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule", custom=True),
    Kind("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor", custom=True),
]

_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


def groups() -> list[tuple[str, str]]:
    """Every (group, version) once."""
    return list(dict.fromkeys((kind.group, kind.version) for kind in KINDS))


def find(group: str, version: str, plural: str) -> Kind | None:
    """The kind served under this path."""
    return next((kind for kind in KINDS if (kind.group, kind.version, kind.plural) == (group, version, plural)), None)


def version_document() -> Json:
    """GET /version"""
    major, minor = VERSION.split(".")
    return {"major": major, "minor": minor, "gitVersion": f"v{VERSION}.0", "platform": "linux/amd64"}


def group_list() -> Json:
    """GET /apis"""
    entries = []
    for group, version in groups():
        if group:
            served = {"groupVersion": f"{group}/{version}", "version": version}
            entries.append({"name": group, "versions": [served], "preferredVersion": served})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": entries}


def resource_list(group: str, version: str) -> Json:
    """GET /api/v1, /apis/GROUP/VERSION"""
    resources = [
        {
            "name": kind.plural,
            "singularName": kind.name.lower(),
            "kind": kind.name,
            "namespaced": kind.namespaced,
            "verbs": _VERBS,
        }
        for kind in KINDS
        if (kind.group, kind.version) == (group, version)
    ]
    served = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": served, "resources": resources}


def openapi_index() -> Json:
    """GET /openapi/v3: where the document of each group is."""
    roots = dict.fromkeys(kind.root for kind in KINDS)
    return {"paths": {root: {"serverRelativeURL": f"/openapi/v3/{root}?hash=1"} for root in roots}}


def openapi_document(root: str) -> Json:
    """What Helm looks for in a group's document: that a patch may ask for strict validation of fields."""
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string"}}
        for name in ("dryRun", "fieldManager", "fieldValidation", "force")
    ]
    paths = {}
    for kind in KINDS:
        if kind.root == root:
            place = "namespaces/{namespace}/" if kind.namespaced else ""
            paths[f"/{root}/{place}{kind.plural}/{{name}}"] = {
                "patch": {
                    "parameters": parameters,
                    "responses": {},
                    "x-kubernetes-group-version-kind": {
                        "group": kind.group,
                        "version": kind.version,
                        "kind": kind.name,
                    },
                }
            }
    info = {"title": "tests", "version": f"v{VERSION}.0"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}
