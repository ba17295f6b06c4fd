"""The configuration file of every process of a cluster folder, and the profile of its clients.

Pure: structures and text in, text out. What each setting means is said where it is read: `copypool_node.config`,
`copypool_coordinator.config`, `copypool.profile`, and etcd's own manual.
"""

from __future__ import annotations

import json

from copypool.dev.layout import HOST, NAMESPACE, OPERATOR, Cluster, Layout, Process
from copypool.toml_text import Value, to_toml

RELOAD_S = 1.0  #: renewed certificates are in use after this time
HEARTBEATS_PER_SESSION = 5  #: how many heartbeats in a row may get lost, plus one
ETCD_QUOTA_BYTES = 2 * 1024**3  #: small: a trial cluster shares its machine


def arguments_of(layout: Layout, process: Process, python: str, etcd: str) -> list[str]:
    """The command line of a process. Its configuration file is an argument of its own: see `processes`."""
    config = str(layout.config_file(process))
    if process.kind == "etcd":
        return [etcd, "--config-file", config]
    return [python, "-m", f"copypool_{process.kind}", "--config", config]


def config_of(layout: Layout, cluster: Cluster, process: Process) -> str:
    """The text of a process's configuration file."""
    if process.kind == "etcd":
        return json.dumps(_etcd(layout, cluster, process), indent=1) + "\n"
    if process.kind == "coordinator":
        return to_toml(_coordinator(layout, cluster, process))
    return to_toml(_node(layout, cluster, process))


def profile_of(layout: Layout, cluster: Cluster) -> str:
    """The client profile: the cluster's own admin, so that every command works."""
    profile: dict[str, Value] = {
        "coordinators": [process.url for process in cluster.of("coordinator")],
        "token_file": str(layout.admin_token),
        "namespace": NAMESPACE,
    }
    if cluster.tls:
        profile["ca_file"] = layout.certificate(OPERATOR).authority
    return to_toml(profile)


def _tls(layout: Layout, process: Process) -> dict[str, Value]:
    """The `[tls]` section of a server: it shows a certificate, and asks other servers for theirs."""
    if not process.tls:
        return {}
    files = layout.certificate(process.name)
    section = {"cert_file": files.certificate, "key_file": files.key, "ca_file": files.authority}
    return {"tls": {**section, "require_client_cert": True, "reload_s": RELOAD_S}}


def _etcd_tls(layout: Layout, process: Process) -> dict[str, Value]:
    """How an etcd member speaks TLS, to clients and to other members; it reads renewed files by itself."""
    if not process.tls:
        return {}
    files = layout.certificate(process.name)
    section: dict[str, Value] = {
        "cert-file": files.certificate,
        "key-file": files.key,
        "trusted-ca-file": files.authority,
        "client-cert-auth": True,
    }
    return {"client-transport-security": section, "peer-transport-security": section}


def _etcd(layout: Layout, cluster: Cluster, process: Process) -> dict[str, Value]:
    peers = {member.name: f"{member.scheme}://{HOST}:{member.peer_port}" for member in cluster.of("etcd")}
    peer_url = peers[process.name]
    return {
        "name": process.name,
        "data-dir": str(layout.data(process.name)),
        "listen-client-urls": process.url,
        "advertise-client-urls": process.url,
        "listen-peer-urls": peer_url,
        "initial-advertise-peer-urls": peer_url,
        "initial-cluster": ",".join(f"{name}={url}" for name, url in peers.items()),
        "initial-cluster-state": "new",
        "quota-backend-bytes": ETCD_QUOTA_BYTES,
        "logger": "zap",
        "log-level": "warn",
        "log-outputs": ["stderr"],
        **_etcd_tls(layout, process),
    }


def _coordinator(layout: Layout, cluster: Cluster, process: Process) -> dict[str, Value]:
    etcd: dict[str, Value] = {"endpoints": [f"{HOST}:{member.port}" for member in cluster.of("etcd")]}
    if process.tls:
        files = layout.certificate(process.name)
        etcd |= {"ca_file": files.authority, "cert_file": files.certificate, "key_file": files.key}
        etcd |= {"reload_s": RELOAD_S}
    return {
        "name": process.name,
        "listen_host": HOST,
        "listen_port": process.port,
        "shared_port": cluster.shared_port,
        "etcd": etcd,
        "allow_unsound_etcd": True,
        "master_secret_file": str(layout.master_secret),
        "admin_token_file": str(layout.admin_token),
        "join_token_file": str(layout.join_token),
        "grace_s": cluster.tuning.grace_s,
        "scrub_period_s": cluster.tuning.scrub_period_s,
        "drop_delay_s": cluster.tuning.drop_delay_s,
        "process_patience_s": cluster.tuning.process_patience_s,
        "session_ttl_s": cluster.tuning.session_ttl_s,
        "bootstrap": {"namespace": NAMESPACE},
        "log_format": cluster.tuning.log_format,
        "log_level": cluster.tuning.log_level,
        "trace_export": cluster.tuning.trace_export,
        **_tls(layout, process),
    }


def _node(layout: Layout, cluster: Cluster, process: Process) -> dict[str, Value]:
    return {
        "name": process.name,
        "listen_host": HOST,
        "listen_port": process.port,
        "zone": process.zone,
        # One machine plays several: each node is a failure domain of its own.
        "host": process.name,
        "coordinators": [coordinator.url for coordinator in cluster.of("coordinator")],
        "join_token_file": str(layout.join_token),
        "log_format": cluster.tuning.log_format,
        "log_level": cluster.tuning.log_level,
        "trace_export": cluster.tuning.trace_export,
        "state_dir": str(layout.data(process.name) / "state"),
        "volumes": [
            {
                "path": str(layout.volume(process.name)),
                "name": f"{process.name}-a",
                "pool": process.pool,
                "pool_type": process.pool_type,
            }
        ],
        "limits": {
            "heartbeat_s": cluster.tuning.session_ttl_s / HEARTBEATS_PER_SESSION,
            "idle_seal_s": cluster.tuning.idle_seal_s,
            "rebuild_bytes_s": cluster.tuning.rebuild_bytes_s,
        },
        **_tls(layout, process),
    }
