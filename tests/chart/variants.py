"""Every option of the chart, set to something that is not its default, at least once."""

from __future__ import annotations

from chart.fakeapi.kinds import Json

GIVEN_TLS = {"mode": "secrets", "secrets": {"coordinator": "tls-c", "node": "tls-n", "etcd": "tls-e"}}
POD_OPTIONS: Json = {
    "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "3Gi"}},
    "affinity": {"nodeAffinity": {}},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "storage", "operator": "Exists"}],
    "priorityClassName": "high",
    "podAnnotations": {"a": "b"},
    "extraEnv": [{"name": "A", "value": "b"}],
}
ALL_MONITORING = {
    name: {"enabled": True, "labels": {"a": "b"}} for name in ("serviceMonitor", "prometheusRule", "dashboard")
}
WATCHERS: list[Json] = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]

VARIANTS: dict[str, Json] = {
    "defaults": {},
    "names": {"nameOverride": "store", "clusterDomain": "k8s.example", "commonLabels": {"team": "x"}},
    "full name": {"fullnameOverride": "a-name-of-thirty-characters-xx"},
    "ipv6": {"listenHost": "::"},
    "pull secrets": {"imagePullSecrets": [{"name": "registry"}]},
    "own secrets": {"secrets": {"keys": "my-keys", "join": "my-join"}},
    "cert-manager": {
        "tls": {
            "mode": "certManager",
            "certManager": {
                "issuer": {"name": "ca", "kind": "ClusterIssuer", "group": "cert-manager.io"},
                "duration": "720h",
                "renewBefore": "240h",
            },
        }
    },
    "given certificates": {
        "tls": {**GIVEN_TLS, "requireClientCert": True},
        "monitoring": ALL_MONITORING,
        "networkPolicy": {"monitoring": WATCHERS},
    },
    "pods": {
        "coordinator": {**POD_OPTIONS, "replicas": 3, "settings": {"grace_s": 60, "limits": {"requests": 100}}},
        "node": {**POD_OPTIONS, "settings": {"log_level": "debug", "limits": {"heartbeat_s": 1.5}}, "port": 7401},
        "etcd": {**POD_OPTIONS, "quotaBytes": 2147483648, "plannedMillionFiles": 0.5},
    },
    "node life": {"node": {"maintenanceSeconds": 0, "stopWaitSeconds": 60, "terminationGracePeriodSeconds": 120}},
    "images": {
        part: {
            "image": {
                "repository": f"r.example/{part}",
                "tag": "1",
                "digest": f"sha256:{'0' * 64}",
                "pullPolicy": "Always",
            }
        }
        for part in ("coordinator", "node", "etcd")
    },
    "service": {"coordinator": {"service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}}}},
    "groups": {
        "nodeGroups": {
            "copy": None,
            "primary": {"replicas": 0},
            "fast": {
                "replicas": 3,
                "zone": "z1",
                "volumes": {
                    "a": {
                        "pool": "fast",
                        "poolType": "primary",
                        "size": "1Ti",
                        "storageClass": "nvme",
                        "reserveBytes": 1 << 30,
                    },
                    "b": {"pool": "copy", "poolType": "copy", "size": "2Ti"},
                },
            },
        }
    },
    "one etcd": {"etcd": {"replicas": 1, "initialClusterState": "existing"}},
    "old etcd": {
        "etcd": {
            "probes": {"livenessPath": "/health", "readinessPath": "/health"},
            "storage": {"size": "5Gi", "storageClass": "fast"},
        }
    },
    "external etcd": {
        "etcd": {
            "enabled": False,
            "external": {
                "endpoints": ["etcd.example:2379"],
                "tlsSecret": "etcd-tls",
                "clientCertificate": True,
                "passwordSecret": "etcd-password",
                "user": "copypool",
            },
        }
    },
    "open": {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
    "peers": {"networkPolicy": {"clients": [], "monitoring": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}},
    "monitoring": {
        "monitoring": {**ALL_MONITORING, "serviceMonitor": {"enabled": True, "interval": "10s"}},
        "networkPolicy": {"enabled": False},
    },
    "tests": {"tests": {"timeoutSeconds": 60}},
}
