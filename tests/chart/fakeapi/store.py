"""The server's objects, their revisions, who watches them, and controllers that are done at once."""

from __future__ import annotations

import asyncio
import copy
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from chart.fakeapi import merging, rules
from chart.fakeapi.kinds import Json, Kind

_CREATED_AT = "2026-01-01T00:00:00Z"
_SET = re.compile(r"(\S+)\s+(in|notin)\s+\((.*)\)")
_TERMS = re.compile(r",(?![^(]*\))")


@dataclass(frozen=True, slots=True)
class Key:
    """Where an object is."""

    kind: Kind
    namespace: str
    name: str


@dataclass(slots=True)
class Watch:
    """One open watch: which objects, and what is still to be told."""

    kind: Kind
    namespace: str  #: empty: all
    labels: str
    #: None: the server stops
    events: asyncio.Queue[Json | None] = field(default_factory=asyncio.Queue)


class Store:
    """All objects. Every change is checked by `rules` first."""

    def __init__(self) -> None:
        self._objects: dict[Key, Json] = {}
        self._applied: dict[Key, Json] = {}
        self._revisions = itertools.count(1)
        self.watches: list[Watch] = []
        self.revision = 0

    def get(self, key: Key) -> Json | None:
        """One object, or None."""
        return self._objects.get(key)

    def list(self, kind: Kind, namespace: str = "", labels: str = "", name: str = "") -> list[Json]:
        """Objects of a kind, by namespace, label selector and name; empty means any."""
        return [item for _, item in self._select(kind, namespace, labels, name)]

    def _select(self, kind: Kind, namespace: str, labels: str, name: str) -> Iterator[tuple[Key, Json]]:
        for key, item in list(self._objects.items()):
            if key.kind is not kind or namespace not in ("", key.namespace) or name not in ("", key.name):
                continue
            if selects(labels, item["metadata"].get("labels") or {}):
                yield key, item

    def put(self, key: Key, item: Json, *, dry_run: bool = False, applied: Json | None = None) -> Json:
        """Create or replace; `rules.Refused` when the real server would not take it. Returns what is stored."""
        old = self._objects.get(key)
        item = copy.deepcopy(item)
        item["kind"], item["apiVersion"] = key.kind.name, key.kind.api_version
        metadata = item.setdefault("metadata", {})
        metadata["name"] = key.name
        if key.kind.namespaced:
            metadata["namespace"] = key.namespace
        rules.check_schema(key.kind, item)
        if old is not None:
            rules.check_update(key.kind, old, item)
        if dry_run:
            return item
        self.revision = next(self._revisions)
        same_spec = old is not None and old.get("spec") == item.get("spec")
        known = old["metadata"] if old is not None else {"uid": f"uid-{self.revision}", "generation": 0}
        metadata["uid"], metadata["creationTimestamp"] = known["uid"], _CREATED_AT
        metadata["generation"] = known["generation"] + (not same_spec)
        metadata["resourceVersion"] = str(self.revision)
        _settle(item)
        self._objects[key] = item
        if applied is not None:
            self._applied[key] = applied
        self._tell("ADDED" if old is None else "MODIFIED", key, item)
        return item

    def apply(self, key: Key, applied: Json, *, dry_run: bool = False) -> Json:
        """Server-side apply by the one manager that there is."""
        live = self._objects.get(key)
        merged = applied if live is None else merging.apply(live, self._applied.get(key, {}), applied)
        return self.put(key, merged, dry_run=dry_run, applied=applied)

    def delete(self, key: Key) -> Json | None:
        """The object that was there, or None."""
        item = self._objects.pop(key, None)
        self._applied.pop(key, None)
        if item is not None:
            self.revision = next(self._revisions)
            self._tell("DELETED", key, item)
        return item

    def delete_all(self, kind: Kind, namespace: str, labels: str) -> None:
        """Delete what a selector names."""
        for key, _ in list(self._select(kind, namespace, labels, "")):
            self.delete(key)

    def end_watches(self) -> None:
        """Have every watch end."""
        for watch in self.watches:
            watch.events.put_nowait(None)

    def _tell(self, event: str, key: Key, item: Json) -> None:
        for watch in self.watches:
            if watch.kind is not key.kind or watch.namespace not in ("", key.namespace):
                continue
            if selects(watch.labels, item["metadata"].get("labels") or {}):
                watch.events.put_nowait({"type": event, "object": copy.deepcopy(item)})


def selects(selector: str, labels: dict[str, str]) -> bool:
    """Whether a label selector in its text form selects these labels."""
    for term in _TERMS.split(selector):
        if match := _SET.fullmatch(term.strip()):
            values = {value.strip() for value in match[3].split(",")}
            if (labels.get(match[1]) in values) != (match[2] == "in"):
                return False
        elif "!=" in term:
            key, _, value = term.partition("!=")
            if labels.get(key) == value:
                return False
        elif "=" in term:
            key, _, value = term.replace("==", "=").partition("=")
            if labels.get(key) != value:
                return False
        elif term and term not in labels:
            return False
    return True


def _settle(item: Json) -> None:
    """What controllers bring about, at once: everything is ready."""
    replicas = (item.get("spec") or {}).get("replicas", 1)
    observed: Json = {"observedGeneration": item["metadata"]["generation"]}
    if item["kind"] == "Deployment":
        conditions = [
            {"type": "Available", "status": "True"},
            {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
        ]
        counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        item["status"] = observed | dict.fromkeys(counts, replicas) | {"conditions": conditions}
    elif item["kind"] == "StatefulSet":
        counts = ("replicas", "updatedReplicas", "readyReplicas", "currentReplicas", "availableReplicas")
        revisions = {"currentRevision": "settled", "updateRevision": "settled"}
        item["status"] = observed | dict.fromkeys(counts, replicas) | revisions
    elif item["kind"] == "PodDisruptionBudget":
        counts = {"currentHealthy": 3, "desiredHealthy": 2, "disruptionsAllowed": 1, "expectedPods": 3}
        allowed = {"type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods"}
        item["status"] = observed | counts | {"conditions": [allowed]}
    elif item["kind"] == "PersistentVolumeClaim":
        item["status"] = {"phase": "Bound"}
    elif item["kind"] == "Pod":
        item["status"] = {"phase": "Succeeded"}
