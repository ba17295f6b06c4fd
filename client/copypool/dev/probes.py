"""Is it ready, and what does it count? Small HTTP calls on loopback, with a deadline. Foreign exceptions end here."""

from __future__ import annotations

import http.client

import msgspec

from copypool.dev.layout import HOST, Process
from copypool.protocol import routes
from copypool.protocol.api import LeaseRequest
from copypool.protocol.errors import Unavailable
from copypool.tls import TlsError, TlsFiles, client_context

_PAGE_MAX_BYTES = 1 << 20
_SHOWN_BYTES = 300


def _connection(process: Process, timeout_s: float, files: TlsFiles) -> http.client.HTTPConnection:
    if not process.tls:
        return http.client.HTTPConnection(HOST, process.port, timeout=timeout_s)
    try:
        context = client_context(files)
    except TlsError as exc:
        raise Unavailable(f"{process.name} cannot be asked: {exc}") from exc
    return http.client.HTTPSConnection(HOST, process.port, timeout=timeout_s, context=context)


def _exchange(
    process: Process,
    method: str,
    path: str,
    timeout_s: float,
    files: TlsFiles,
    body: bytes | None = None,
    token: str = "",
) -> tuple[int, str]:
    connection = _connection(process, timeout_s, files)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": routes.JSON} if token else {}
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read(_PAGE_MAX_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as exc:
        raise Unavailable(f"{process.name} does not answer at {process.url}: {exc}") from exc
    finally:
        connection.close()


def unready(process: Process, files: TlsFiles, timeout_s: float = 1.0) -> str:
    """Why the process is not ready yet; empty when it is. `files` are used where it speaks TLS, here and below."""
    path = "/health" if process.kind == "etcd" else "/readyz"
    try:
        status, content = _exchange(process, "GET", path, timeout_s, files)
    except Unavailable as exc:
        return exc.message
    return "" if status == http.client.OK else _refusal(process, status, content)


def unplaceable(coordinator: Process, files: TlsFiles, namespace: str, token: str, timeout_s: float = 2.0) -> str:
    """Why this coordinator has no place for a write to `namespace` yet; empty when it has."""
    body = msgspec.json.encode(LeaseRequest(namespace))
    try:
        status, content = _exchange(coordinator, "POST", "/rpc/lease", timeout_s, files, body, token)
    except Unavailable as exc:
        return exc.message
    return "" if status == http.client.OK else _refusal(coordinator, status, content)


def _refusal(process: Process, status: int, content: str) -> str:
    return f"{process.name} answers {status}: {content[:_SHOWN_BYTES].strip()}"


def counter(process: Process, files: TlsFiles, name: str, timeout_s: float = 10.0) -> int:
    """The sum of a counter on the process's metrics page, or `Unavailable`. Counts from the start of the process."""
    status, content = _exchange(process, "GET", "/metrics", timeout_s, files)
    if status == http.client.OK and f"# TYPE {name} counter\n" in content:
        samples = (line.rpartition(" ") for line in content.splitlines() if not line.startswith("#"))
        return int(sum(float(value) for key, _, value in samples if key.partition("{")[0] == name))
    raise Unavailable(f"{process.name} does not count {name}: its /metrics answers {status}")
