"""Is it ready? One small HTTP call on loopback, with a deadline. Foreign exceptions end here."""

from __future__ import annotations

import http.client

from copypool.dev.layout import HOST, Process

_SHOWN_BYTES = 300


def unready(process: Process, timeout_s: float = 1.0) -> str:
    """Why the process is not ready yet; empty when it is."""
    connection = http.client.HTTPConnection(HOST, process.port, timeout=timeout_s)
    try:
        connection.request("GET", "/health" if process.kind == "etcd" else "/readyz")
        response = connection.getresponse()
        content = response.read(_SHOWN_BYTES)
    except (OSError, http.client.HTTPException) as exc:
        return f"{process.name} does not answer at {process.url}: {exc}"
    finally:
        connection.close()
    if response.status == http.client.OK:
        return ""
    return f"{process.name} answers {response.status}: {content.decode('utf-8', 'replace').strip()}"
