"""`GET /ui/...`: the files of the dashboard, from memory. They hold nothing of the cluster.

The page is plain modules without a build step. It asks the verbs that the command line asks (`/rpc/status`, `nodes`,
...), with the token of whoever looks, and follows `/ui/events` (`event_streams`). So it needs no right of its own and
changes nothing. Its policy lets the browser run and load these files alone: no inline script, no other host, no text
taken for markup, no frame around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

ROOT = "/ui/"
_FOLDER = Path(__file__).parent / "ui"
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time, and answered by 304: after an upgrade nobody looks with yesterday's page.
    "Cache-Control": "no-cache",
}

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def load() -> dict[str, Handler]:
    """Path -> handler of every file of the page. Blocking: reads them, once."""
    files = {each.name: each for each in sorted(_FOLDER.iterdir()) if each.suffix in _TYPES}
    found: dict[str, Handler] = {ROOT.rstrip("/"): _to_root}
    for name, file in files.items():
        found[ROOT if name == _INDEX else ROOT + name] = _handler(file.read_bytes(), _TYPES[file.suffix])
    return found


def _handler(body: bytes, content_type: str) -> Handler:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**_HEADERS, "Content-Type": content_type, "ETag": tag}

    async def handle(request: web.BaseRequest) -> web.Response:
        known = request.headers.get("If-None-Match", "")
        if tag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return web.Response(status=304, headers={key: headers[key] for key in (*_HEADERS, "ETag")})
        return web.Response(body=body, headers=headers)

    return handle


async def _to_root(_: web.BaseRequest) -> web.Response:
    # Relative, as all links of the page are: it works below whatever path a proxy puts in front.
    return web.Response(status=308, headers={**_HEADERS, "Location": "ui/"})
