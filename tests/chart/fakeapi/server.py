"""The server's HTTP: paths to objects, in a thread of its own on a port of loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import yaml
from aiohttp import web

from chart.fakeapi import kinds, merging, rules
from chart.fakeapi.kinds import Json, Kind
from chart.fakeapi.store import Key, Store, Watch

_START_S = 10.0


class ApiServer:
    """Handles the requests of one store. `requests` has (method, path) of all that came."""

    def __init__(self) -> None:
        self.store = Store()
        self.requests: list[tuple[str, str]] = []
        for name in ("default", "storage"):
            self.store.put(Key(kinds.KINDS[0], "", name), {})

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        parts = request.path.strip("/").split("/")
        document = _about(parts)
        if document is not None:
            return web.json_response(document)
        group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        kind = kinds.find(group, version, rest[0])
        if kind is None or len(rest) > 2:
            return _status(404, "NotFound", f"the server does not have {request.path}")
        try:
            if len(rest) == 1:
                return await self._collection(request, kind, namespace)
            return await self._object(request, Key(kind, namespace, rest[1]))
        except rules.Refused as exc:
            return _status(422, "Invalid", str(exc))

    async def _collection(self, request: web.Request, kind: Kind, namespace: str) -> web.StreamResponse:
        labels = request.query.get("labelSelector", "")
        if request.method == "POST":
            item = await _body(request)
            key = Key(kind, namespace, item["metadata"]["name"])
            if self.store.get(key) is not None:
                return _status(409, "AlreadyExists", f'{kind.plural} "{key.name}" already exists')
            return web.json_response(self.store.put(key, item, dry_run="dryRun" in request.query), status=201)
        if request.method == "DELETE":
            self.store.delete_all(kind, namespace, labels)
            return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Success"})
        if request.query.get("watch") in ("true", "1"):
            if "sendInitialEvents" in request.query:  # clients fall back to a list and a watch
                return _status(422, "Invalid", "sendInitialEvents is not supported")
            return await self._watch(request, Watch(kind, namespace, labels))
        name = dict(term.split("=", 1) for term in request.query.get("fieldSelector", "").split(",") if "=" in term)
        items = self.store.list(kind, namespace, labels, name.get("metadata.name", ""))
        return web.json_response(
            {
                "kind": f"{kind.name}List",
                "apiVersion": kind.api_version,
                "metadata": {"resourceVersion": str(self.store.revision)},
                "items": items,
            }
        )

    async def _watch(self, request: web.Request, watch: Watch) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        self.store.watches.append(watch)
        try:
            await response.prepare(request)
            while (event := await watch.events.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        except ConnectionError:
            pass  # the client has seen enough
        finally:
            self.store.watches.remove(watch)
        return response

    async def _object(self, request: web.Request, key: Key) -> web.StreamResponse:
        live = self.store.get(key)
        dry_run = "dryRun" in request.query
        if request.method == "PATCH" and "apply" in request.content_type:
            item = self.store.apply(key, await _body(request), dry_run=dry_run)
            return web.json_response(item, status=200 if live is not None else 201)
        if live is None:
            return _status(404, "NotFound", f'{key.kind.plural} "{key.name}" not found')
        if request.method == "GET":
            return web.json_response(live)
        if request.method == "PUT":
            return web.json_response(self.store.put(key, await _body(request), dry_run=dry_run))
        if (
            request.method == "PATCH"
            and "merge-patch" in request.content_type
            and "strategic" not in request.content_type
        ):
            merged = merging.merge_patch(live, await _body(request))
            return web.json_response(self.store.put(key, merged, dry_run=dry_run))
        if request.method == "DELETE":
            self.store.delete(key)
            details = {"name": key.name, "kind": key.kind.plural, "uid": live["metadata"]["uid"]}
            return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Success", "details": details})
        return _status(415, "UnsupportedMediaType", f"{request.method} of {request.content_type} is not supported")


def _about(parts: list[str]) -> Json | None:
    """The answer to a question about the server itself; None for one about objects."""
    if parts == ["version"]:
        return kinds.version_document()
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if parts == ["apis"]:
        return kinds.group_list()
    if parts[:2] == ["openapi", "v3"]:
        return kinds.openapi_document("/".join(parts[2:])) if len(parts) > 2 else kinds.openapi_index()
    if parts[0] == "api" and len(parts) == 2:
        return kinds.resource_list("", parts[1])
    if parts[0] == "apis" and len(parts) == 3:
        return kinds.resource_list(parts[1], parts[2])
    return None if parts[0] in ("api", "apis") and len(parts) > 2 else {"kind": "Status", "code": 404}


async def _body(request: web.Request) -> Any:
    if "protobuf" in request.content_type:
        raise web.HTTPUnsupportedMediaType
    raw = await request.read()
    return yaml.safe_load(raw) if "yaml" in request.content_type else json.loads(raw)


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": code,
    }
    return web.json_response(body, status=code)


@contextlib.contextmanager
def running() -> Iterator[tuple[ApiServer, str]]:
    """A server and a kubeconfig (JSON) for it, until the block ends."""
    server = ApiServer()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake-api", daemon=True)
    thread.start()

    async def start() -> tuple[web.AppRunner, int]:
        runner = web.AppRunner(server.app(), shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    async def stop(runner: web.AppRunner) -> None:
        server.store.end_watches()
        await runner.cleanup()
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result(_START_S)
    try:
        yield server, _kubeconfig(f"http://127.0.0.1:{port}")
    finally:
        asyncio.run_coroutine_threadsafe(stop(runner), loop).result(_START_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_START_S)
        loop.close()


def _kubeconfig(url: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": url}}],
            "users": [{"name": "tests", "user": {}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        }
    )
