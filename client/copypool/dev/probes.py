"""Is it ready, and what does it count? Small HTTP calls on loopback, with a deadline. Foreign exceptions end here."""

from __future__ import annotations

import http.client

import msgspec

from copypool.dev.layout import HOST, Process
from copypool.protocol import routes
from copypool.protocol.api import LeaseRequest
from copypool.protocol.errors import Unavailable

_PAGE_MAX_BYTES = 1 << 20
_SHOWN_BYTES = 300


def _exchange(
    process: Process, method: str, path: str, timeout_s: float, body: bytes | None = None, token: str = ""
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, process.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": routes.JSON} if token else {}
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read(_PAGE_MAX_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as exc:
        raise Unavailable(f"{process.name} does not answer at {process.url}: {exc}") from exc
    finally:
        connection.close()


def unready(process: Process, timeout_s: float = 1.0) -> str:
    """Why the process is not ready yet; empty when it is."""
    try:
        status, content = _exchange(process, "GET", "/health" if process.kind == "etcd" else "/readyz", timeout_s)
    except Unavailable as exc:
        return exc.message
    return "" if status == http.client.OK else _refusal(process, status, content)


def unplaceable(coordinator: Process, namespace: str, token: str, timeout_s: float = 2.0) -> str:
    """Why this coordinator has no place for a write to `namespace` yet; empty when it has."""
    body = msgspec.json.encode(LeaseRequest(namespace))
    try:
        status, content = _exchange(coordinator, "POST", "/rpc/lease", timeout_s, body, token)
    except Unavailable as exc:
        return exc.message
    return "" if status == http.client.OK else _refusal(coordinator, status, content)


def _refusal(process: Process, status: int, content: str) -> str:
    return f"{process.name} answers {status}: {content[:_SHOWN_BYTES].strip()}"


def counter(process: Process, name: str, timeout_s: float = 2.0) -> int:
    """The sum of a counter on the process's metrics page, or `Unavailable`. Counts from the start of the process."""
    status, content = _exchange(process, "GET", "/metrics", timeout_s)
    if status == http.client.OK and f"# TYPE {name} counter\n" in content:
        samples = (line.rpartition(" ") for line in content.splitlines() if not line.startswith("#"))
        return int(sum(float(value) for key, _, value in samples if key.partition("{")[0] == name))
    raise Unavailable(f"{process.name} does not count {name}: its /metrics answers {status}")
