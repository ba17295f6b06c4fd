"""From manifests to the containers that they mean. Pure; addresses and machines are arguments.

Says no (`NotPlayable`) to what it does not understand, so that a chart's new field is never just left out.
Source: the Kubernetes API reference of Pod, StatefulSet and Service.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chart.fakeapi.kinds import Json

_POD_FIELDS = {
    "imagePullSecrets",
    "nodeSelector",
    "priorityClassName",
    "tolerations",
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "restartPolicy",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "topologySpreadConstraints",
    "volumes",
}
_CONTAINER_FIELDS = {
    "args",
    "command",
    "env",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "volumeMounts",
}
_REFERENCE = re.compile(r"\$(\$)?\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_HASH = "5d4f8c7b9"  #: what a ReplicaSet puts into the names of its pods


class NotPlayable(Exception):
    """The manifests have something that is not understood here."""


@dataclass(frozen=True, slots=True)
class Files:
    """A volume of files: what a ConfigMap or Secret projects."""

    content: Mapping[str, bytes]
    mode: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A folder of a persistent volume; empty: its root."""

    name: str
    folder: str


@dataclass(frozen=True, slots=True)
class Probe:
    """An HTTP probe."""

    path: str
    port: int
    scheme: str


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of one container."""

    name: str
    labels: Mapping[str, str]
    machine: str  #: `spec.nodeName`
    aliases: Sequence[str]  #: DNS names that lead to it
    image: str
    command: Sequence[str]
    args: Sequence[str]
    environment: Mapping[str, str]
    user: int
    group: int
    volumes_group: int | None
    read_only: bool
    files: Mapping[str, Files] = field(default_factory=dict)  #: by mount path
    claims: Mapping[str, Claim] = field(default_factory=dict)  #: by mount path
    probes: Mapping[str, Probe] = field(default_factory=dict)  #: by "livenessProbe", "readinessProbe"
    pre_stop: Sequence[str] = ()
    grace_s: int = 30


class Manifests:
    """The objects of a release, and which pods they mean."""

    def __init__(self, objects: Sequence[Json], namespace: str, machines: Sequence[str]) -> None:
        self._objects = {(item["kind"], item["metadata"]["name"]): item for item in objects}
        self._namespace = namespace
        self._machines = machines

    def identities(self) -> Iterator[tuple[str, Json, str, str]]:
        """Name, pod template, controller's name and governing Service of every pod that controllers would make."""
        for (kind, name), item in sorted(self._objects.items()):
            if kind == "StatefulSet":
                for ordinal in range(item["spec"]["replicas"]):
                    yield f"{name}-{ordinal}", item["spec"]["template"], name, item["spec"]["serviceName"]
            elif kind == "Deployment":
                for number in range(item["spec"]["replicas"]):
                    yield f"{name}-{_HASH}-{number:05}", item["spec"]["template"], name, ""

    def bare_pod(self, name: str) -> Pod:
        """A pod that no controller made, as a test hook's."""
        item = self._of("Pod", name)
        return self.pod(name, item, "", "", self._machines[0], "")

    def pods(self, address_of: Mapping[str, str]) -> list[Pod]:
        """All pods; `address_of` has the address of each by name."""
        found = []
        for index, (name, template, controller, service) in enumerate(self.identities()):
            machine = self._machines[index % len(self._machines)]
            found.append(self.pod(name, template, controller, service, machine, address_of[name]))
        return found

    def pod(self, name: str, template: Json, controller: str, service: str, machine: str, address: str) -> Pod:
        """One pod; `NotPlayable` for what is not understood."""
        spec = template["spec"]
        _known(spec, _POD_FIELDS, f"pod {name}")
        if len(spec["containers"]) != 1:
            raise NotPlayable(f"pod {name} has several containers")
        container = spec["containers"][0]
        _known(container, _CONTAINER_FIELDS, f"container {container['name']} of pod {name}")
        facts = {"metadata.name": name, "spec.nodeName": machine, "status.podIP": address}
        environment = self._environment(container, facts)
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        labels = template["metadata"].get("labels", {})
        security = spec["securityContext"]
        mounts = self._mounts(name, controller, spec, container)
        stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        return Pod(
            name=name,
            labels=labels,
            machine=machine,
            aliases=[name, *self._aliases(name, labels, service)],
            image=container["image"],
            command=[_expand(part, environment) for part in container.get("command", [])],
            args=[_expand(part, environment) for part in container.get("args", [])],
            environment=environment,
            user=security["runAsUser"],
            group=security["runAsGroup"],
            volumes_group=security.get("fsGroup"),
            read_only=container["securityContext"]["readOnlyRootFilesystem"],
            files={path: mount for path, mount in mounts.items() if isinstance(mount, Files)},
            claims={path: mount for path, mount in mounts.items() if isinstance(mount, Claim)},
            probes=dict(_probes(container, ports)),
            pre_stop=stop,
            grace_s=spec.get("terminationGracePeriodSeconds", 30),
        )

    def _environment(self, container: Json, facts: Mapping[str, str]) -> dict[str, str]:
        environment: dict[str, str] = {}
        for entry in container.get("env", []):
            source = entry.get("valueFrom")
            if source is None:
                value = _expand(entry.get("value", ""), environment)
            elif "fieldRef" in source:
                value = facts[source["fieldRef"]["fieldPath"]]
            elif "configMapKeyRef" in source:
                value = self._of("ConfigMap", source["configMapKeyRef"]["name"])["data"][
                    source["configMapKeyRef"]["key"]
                ]
            else:
                raise NotPlayable(f"the environment variable {entry['name']} comes from {sorted(source)}")
            environment[entry["name"]] = value
        return environment

    def _mounts(self, pod: str, controller: str, spec: Json, container: Json) -> dict[str, Files | Claim]:
        """What is mounted where."""
        volumes: dict[str, Files | str] = {volume["name"]: self._files(volume) for volume in spec.get("volumes", [])}
        owner = self._objects.get(("StatefulSet", controller))
        for claim in owner["spec"]["volumeClaimTemplates"] if owner is not None else []:
            wanted = f"{claim['metadata']['name']}-{pod}"
            self._of("PersistentVolumeClaim", wanted)
            volumes[claim["metadata"]["name"]] = wanted
        mounts: dict[str, Files | Claim] = {}
        for mount in container.get("volumeMounts", []):
            volume = volumes[mount["name"]]
            folder = mount.get("subPath", "")
            mounts[mount["mountPath"]] = Claim(volume, folder) if isinstance(volume, str) else volume
        return mounts

    def _files(self, volume: Json) -> Files:
        if "configMap" in volume:
            data = self._of("ConfigMap", volume["configMap"]["name"])["data"]
            return Files(
                {key: text.encode() for key, text in data.items()}, volume["configMap"].get("defaultMode", 0o644)
            )
        if "secret" in volume:
            secret = volume["secret"]
            return Files(self._secret(secret["secretName"], secret.get("items")), secret.get("defaultMode", 0o644))
        if "projected" in volume:
            projected: dict[str, bytes] = {}
            for source in volume["projected"]["sources"]:
                if set(source) != {"secret"}:
                    raise NotPlayable(f"the volume {volume['name']} projects {sorted(source)}")
                projected |= self._secret(source["secret"]["name"], source["secret"].get("items"))
            return Files(projected, volume["projected"].get("defaultMode", 0o644))
        raise NotPlayable(f"the volume {volume['name']} is of a kind that is not played: {sorted(volume)}")

    def _secret(self, name: str, items: Sequence[Json] | None) -> dict[str, bytes]:
        data = {key: base64.b64decode(value) for key, value in self._of("Secret", name)["data"].items()}
        if items is None:
            return data
        return {item["path"]: data[item["key"]] for item in items}

    def _aliases(self, pod: str, labels: Mapping[str, str], governing: str) -> Iterator[str]:
        for (kind, name), item in self._objects.items():
            if kind == "Service" and item["spec"]["selector"].items() <= labels.items():
                # The name of a headless Service leads to all of its pods.
                for place in (name, f"{pod}.{name}") if name == governing else (name,):
                    yield from (place, f"{place}.{self._namespace}", f"{place}.{self._namespace}.svc")
                    yield f"{place}.{self._namespace}.svc.cluster.local"

    def _of(self, kind: str, name: str) -> Json:
        item = self._objects.get((kind, name))
        if item is None:
            raise NotPlayable(f"there is no {kind} {name}: its pod would wait for ever")
        return item


def _known(item: Json, fields: set[str], what: str) -> None:
    if unknown := set(item) - fields:
        raise NotPlayable(f"{what} has fields that are not played: {sorted(unknown)}")


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` replaced as Kubernetes does it: an unknown name stays, `$$(NAME)` is `$(NAME)`."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        return environment.get(match[2], match[0])

    return _REFERENCE.sub(value, text)


def _probes(container: Json, ports: Mapping[str, int]) -> Iterator[tuple[str, Probe]]:
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        if name in container:
            get: dict[str, Any] = container[name]["httpGet"]
            yield name, Probe(get["path"], ports[get["port"]], get.get("scheme", "HTTP").lower())
