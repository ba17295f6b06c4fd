"""The dashboard's files and its stream of events over HTTP, on a real etcd: who may, what is bounded and resumed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

from copypool_coordinator import dashboard, event_streams
from kit.coordinator_process import ADMIN, Running, running_coordinator
from kit.eventually import eventually

FILES = sorted(each.name for each in dashboard._FOLDER.iterdir())
WITHIN_S = 60.0


class Stream:
    """One open stream of events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def messages(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Kind and content, until the stream ends."""
        fields: dict[str, str] = {}
        async for raw in self._response.content:
            line = raw.decode().rstrip("\n")
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                content = msgspec.json.decode(fields["data"])
                assert fields["event"] != "log" or fields["id"] == content["id"]
                yield fields["event"], content
                fields = {}

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """All events up to the first of that kind."""
        found = []
        async with asyncio.timeout(WITHIN_S):
            async for message, content in self.messages():
                if message == "log":
                    found.append(content)
                    if content["kind"] == kind:
                        return found
        raise AssertionError(f"the stream ended without {kind}: {found}")


@asynccontextmanager
async def following(coordinator: Running, token: str = ADMIN, last: str = "") -> AsyncIterator[Stream]:
    headers = {"Authorization": f"Bearer {token}", **({"Last-Event-ID": last} if last else {})}
    async with coordinator.http.get(f"{coordinator.url}/ui/events", headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield Stream(response)


async def make_namespace(coordinator: Running, name: str) -> None:
    """One `NamespaceCreated` in the log."""
    status, reply = await coordinator.rpc("namespace_create", {"name": name})
    assert status == 200, reply


# -- files ---------------------------------------------------------------------------------------
async def test_every_file_is_served_under_a_policy_that_lets_nothing_else_in(coordinator: Running) -> None:
    assert {"index.html", "app.js", "style.css", "icon.svg"} <= set(FILES)
    for name in ("", *FILES):
        if name == "index.html":
            continue
        async with coordinator.http.get(f"{coordinator.url}/ui/{name}") as response:
            assert response.status == 200, name
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-cache"
            body, tag = await response.read(), response.headers["ETag"]
            assert body
        async with coordinator.http.get(
            f"{coordinator.url}/ui/{name}", headers={"If-None-Match": f'"other", W/{tag}'}
        ) as response:
            assert (response.status, await response.read()) == (304, b"")
        async with coordinator.http.head(f"{coordinator.url}/ui/{name}") as response:
            assert (response.status, response.content_length) == (200, len(body))


async def test_the_bare_path_leads_to_the_page_and_other_paths_nowhere(coordinator: Running) -> None:
    async with coordinator.http.get(f"{coordinator.url}/ui", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (308, "ui/")
    for path in ("/ui/none.js", "/ui/../ui/app.js/", "/ui/%2e%2e/server.py", "/ui/index.html"):
        async with coordinator.http.get(f"{coordinator.url}{path}") as response:
            assert response.status == 404, path


def test_the_files_name_no_other_host_and_hold_no_inline_code() -> None:
    for name in FILES:
        text = (dashboard._FOLDER / name).read_text("utf-8")
        hosts = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text)) - {"http://www.w3.org"}
        assert not hosts, (name, hosts)
        assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", text), name
    page = (dashboard._FOLDER / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page)


# -- events --------------------------------------------------------------------------------------
async def test_events_arrive_as_they_happen(coordinator: Running) -> None:
    await make_namespace(coordinator, "before")
    async with following(coordinator) as stream:
        await stream.until("NamespaceCreated")
        await make_namespace(coordinator, "after")
        assert "after" in (await stream.until("NamespaceCreated"))[-1]["message"]


async def test_a_stream_taken_up_again_brings_what_happened_meanwhile(coordinator: Running) -> None:
    await make_namespace(coordinator, "one")
    async with following(coordinator) as stream:
        last = (await stream.until("NamespaceCreated"))[-1]["id"]
    await make_namespace(coordinator, "two")
    async with following(coordinator, last=last) as stream:
        found = {each["message"] for each in await stream.until("NamespaceCreated")}
        if not any("two" in each for each in found):
            found |= {each["message"] for each in await stream.until("NamespaceCreated")}
        assert any("two" in each for each in found)


async def test_only_operators_follow_and_only_as_long_as_their_token_lives(coordinator: Running) -> None:
    url = f"{coordinator.url}/ui/events"
    reader = await coordinator.token("a-reader", "reader")
    for token, status in (("", 401), ("cpt_wrong", 401), (reader, 403)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with coordinator.http.get(url, headers=headers) as response:
            assert response.status == status
    # A token in the URL is none.
    async with coordinator.http.get(url, params={"token": ADMIN}) as response:
        assert response.status == 401
    operator = await coordinator.token("an-operator", "operator")
    async with following(coordinator, operator) as stream:
        assert (await coordinator.rpc("token_revoke", {"name": "an-operator"}))[0] == 200
        async with asyncio.timeout(WITHIN_S):
            async for _ in stream.messages():
                pass  # it ends


async def test_streams_are_bounded_and_their_places_are_given_back(
    coordinator: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_streams, "STREAMS_MAX", 1)
    headers = {"Authorization": f"Bearer {ADMIN}"}

    async def refused() -> bool:
        async with coordinator.http.get(f"{coordinator.url}/ui/events", headers=headers) as response:
            return response.status == 429

    async with following(coordinator):
        assert await refused()

    async def taken() -> bool:
        return not await refused()

    await eventually(taken, "the place is given back")


@pytest.mark.parametrize("last", ["x", "zz" * 12, "a" * 65, "0123"])
async def test_what_is_no_id_is_refused(coordinator: Running, last: str) -> None:
    headers = {"Authorization": f"Bearer {ADMIN}", "Last-Event-ID": last}
    async with coordinator.http.get(f"{coordinator.url}/ui/events", headers=headers) as response:
        assert response.status == 400


async def test_a_coordinator_that_stops_does_not_wait_for_who_follows(endpoint: str) -> None:
    stack = AsyncExitStack()
    async with stack, asyncio.timeout(60), running_coordinator(endpoint, shutdown_s=3600.0) as coordinator:
        stream = await stack.enter_async_context(following(coordinator))
        await make_namespace(coordinator, "seen")
        await stream.until("NamespaceCreated")
