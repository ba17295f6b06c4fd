"""The coordinator's HTTP surface on a real etcd: who may do what, bad inputs, and what a node may not claim."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from typing import Any

import pytest

from copypool.protocol import internal
from copypool.protocol.capability import ReadCapability, WriteCapability, derive_node_keys, seal_capability
from copypool.protocol.errors import Fenced, Forbidden, Unauthorized
from copypool_coordinator import metrics
from kit import metrics_page
from kit.coordinator_process import ADMIN, PlayedNode, Running
from kit.eventually import eventually
from kit.ways import LONG_WAY


async def lease(coordinator: Running, namespace: str = "default", token: str = ADMIN, **fields: Any) -> dict[str, Any]:
    status, reply = await coordinator.rpc("lease", {"namespace": namespace, **fields}, token)
    assert status == 200, reply
    found: dict[str, Any] = reply["leases"][0]
    return found


async def namespace(coordinator: Running, name: str) -> int:
    status, reply = await coordinator.rpc("namespace_create", {"name": name})
    assert status == 200, reply

    async def known() -> bool:
        return any(item["name"] == name for item in (await coordinator.rpc("namespaces", {}))[1]["items"])

    await eventually(known, "the namespace is known")
    return int(reply["id"])


# -- who may do what -----------------------------------------------------------------------------
async def test_without_a_known_living_token_there_is_no_answer(coordinator: Running) -> None:
    short = await coordinator.token("short", "reader", life_s=1)
    gone = await coordinator.token("gone", "reader")
    assert (await coordinator.rpc("token_revoke", {"name": "gone"}))[0] == 200

    async def refused(token: str) -> bool:
        status, body = await coordinator.rpc("status", {}, token)
        return status == 401 and body["code"] == "unauthorized"

    await eventually(lambda: refused(gone), "the revoked token is refused")
    await eventually(lambda: refused(short), "the expired token is refused")
    for token in ("", "cpt_" + "0" * 64, ADMIN + "x", "x" * 600):
        assert await refused(token)
        assert (await coordinator.file("GET", "default/a", token))[0] == 401
    # Not even a bad body is looked at before the token is.
    async with coordinator.http.post(f"{coordinator.url}/rpc/lookup", data=b"\xff") as response:
        assert response.status == 401


VERBS: dict[str, tuple[str, dict[str, Any]]] = {
    "lookup": ("reader", {"namespace": "default", "paths": ["a"]}),
    "list": ("reader", {"namespace": "default"}),
    "status": ("reader", {}),
    "copied": ("reader", {}),
    "namespaces": ("reader", {}),
    "report": ("reader", {"reports": []}),
    "lease": ("writer", {"namespace": "default"}),
    "nodes": ("operator", {}),
    "volumes": ("operator", {}),
    "pools": ("operator", {}),
    "damaged": ("operator", {}),
    "events": ("operator", {}),
    "namespace_create": ("admin", {"name": "new"}),
    "token_create": ("admin", {"name": "new", "role": "admin"}),
    "token_revoke": ("admin", {"name": "other"}),
}
ROLES = ["reader", "writer", "operator", "admin"]


async def test_every_verb_needs_its_role_and_no_more(coordinator: Running, node: PlayedNode) -> None:
    await coordinator.token("other", "reader")
    tokens = {role: await coordinator.token(f"t-{role}", role) for role in ROLES}
    for verb, (needed, body) in VERBS.items():
        for role in ROLES:
            status, reply = await coordinator.rpc(verb, body, tokens[role])
            if ROLES.index(role) < ROLES.index(needed):
                assert (status, reply["code"]) == (403, "forbidden"), (verb, role)
            else:
                assert status == 200, (verb, role, reply)


async def test_a_token_for_one_namespace_sees_nothing_of_another(coordinator: Running, node: PlayedNode) -> None:
    await namespace(coordinator, "other")
    token = await coordinator.token("scoped", "writer", "other")
    for verb, body in (
        ("lease", {"namespace": "default"}),
        ("lookup", {"namespace": "default", "paths": ["a"]}),
        ("list", {"namespace": "default"}),
        ("stat", {"namespace": "default", "path": "a"}),
        ("resolve", {"namespace": "default", "path": "a", "version": 1, "first": 0, "count": 1}),
    ):
        out_of_scope = await coordinator.rpc(verb, body, token)
        not_there = await coordinator.rpc(verb, {**body, "namespace": "absent"}, token)
        assert out_of_scope[0] == 404, verb
        assert str(out_of_scope) == str(not_there).replace("absent", "default")
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        assert (await coordinator.file(method, "default/a", token))[0] == 404
    assert (await coordinator.rpc("lease", {"namespace": "other"}, token))[0] == 200
    _status, reply = await coordinator.rpc("namespaces", {}, token)
    assert [item["name"] for item in reply["items"]] == ["other"]
    admin = await coordinator.token("scoped-admin", "admin", "other")
    assert (await coordinator.rpc("token_create", {"name": "x", "role": "admin"}, admin))[0] == 403


async def test_a_prefix_ends_at_a_path_boundary_everywhere(coordinator: Running, node: PlayedNode) -> None:
    capability = (await lease(coordinator))["capability"]
    paths = ["team/a", "team/a/x", "team/a/y", "team/ab", "team/ab/x", "team/b"]
    for path in paths:
        assert (await node.put(1, path, b"bytes", capability)).outcome == "committed"
    token = await coordinator.token("team-a", "writer", "default", "team/a")
    inside = ["team/a", "team/a/x", "team/a/y"]

    status, reply = await coordinator.rpc("lookup", {"namespace": "default", "paths": paths}, token)
    assert status == 200
    assert [item.get("code", "") for item in reply["results"]] == [
        "" if path in inside else "not_found" for path in paths
    ]
    for path in paths:
        assert (await coordinator.file("GET", f"default/{path}", token))[0] == (200 if path in inside else 404)
        assert (await coordinator.file("PUT", f"default/{path}", token))[0] == (307 if path in inside else 404)

    for query in ({}, {"prefix": "team/a"}, {"prefix": "team/"}, {"after": "team/a"}, {"after": "aaa"}, {"limit": 1}):
        listed = await list_all(coordinator, token, query)
        assert set(listed) <= set(inside), query
    assert await list_all(coordinator, token, {"limit": 1}) == inside
    assert await list_all(coordinator, token, {"prefix": "team/ab"}) == []
    assert await list_all(coordinator, token, {"delimiter": "/", "prefix": "team/"}) == ["team/a", "team/a/"]

    for prefix, allowed in (("team/a", 200), ("team/a/x", 200), ("team", 404), ("", 404), ("team/ab", 404)):
        status, _ = await coordinator.rpc("lease", {"namespace": "default", "prefix": prefix}, token)
        assert status == allowed, prefix


async def list_all(coordinator: Running, token: str, query: dict[str, Any]) -> list[str]:
    """All pages."""
    found: list[str] = []
    after = query.get("after", "")
    while True:
        status, reply = await coordinator.rpc("list", {"namespace": "default", **query, "after": after}, token)
        assert status == 200, reply
        found += [entry["path"] for entry in reply["entries"]]
        after = reply["next_after"]
        if not after:
            return found


# -- bad inputs ----------------------------------------------------------------------------------
BAD_PATHS = [
    ("", 400),
    ("%00", 400),
    ("a%00b", 400),
    ("%ff", 400),
    ("/a", 400),
    ("a/", 400),
    ("a//b", 400),
    ("./a", 400),
    ("a/..", 400),
    ("a/%2e%2e/b", 400),
    ("x" * 1025, 413),
    ("%C3%A9" * 513, 413),
    ("x" * 1024, 404),
    ("a.b/...c", 404),
    ("e%CC%81", 404),
]


async def test_bad_paths_are_refused_with_a_code_by_every_method(coordinator: Running) -> None:
    for path, expected in BAD_PATHS:
        for method in ("GET", "HEAD", "DELETE"):
            status, _, content = await coordinator.file(method, f"default/{path}")
            # No node has joined: a DELETE of a good path has nowhere to go.
            assert status == (503 if method == "DELETE" and expected == 404 else expected), (method, path)
            assert method == "HEAD" or b'"code"' in content
    assert (await coordinator.file("GET", "nosuch/a"))[0] == 404
    assert (await coordinator.file("PATCH", "default/a"))[0] == 405


BAD_CALLS: list[tuple[str, Any, int]] = [
    ("lookup", {"namespace": "default", "paths": []}, 400),
    ("lookup", {"namespace": "default", "paths": ["a"] * 129}, 400),
    ("lookup", {"namespace": "default", "paths": ["a", "b"], "version": 1}, 400),
    ("lookup", {"namespace": "default", "paths": ["a"], "version": -1}, 400),
    ("lookup", {"namespace": "default", "paths": ["a"], "version": 1 << 63}, 400),
    ("lookup", {"namespace": "default", "paths": [1]}, 400),
    ("lookup", {"paths": ["a"]}, 400),
    ("lookup", [], 400),
    ("list", {"namespace": "default", "limit": 0}, 400),
    ("list", {"namespace": "default", "limit": 1001}, 400),
    ("list", {"namespace": "default", "delimiter": "x"}, 400),
    ("list", {"namespace": "default", "prefix": "a\0"}, 400),
    ("list", {"namespace": "default", "after": "x" * 2000}, 400),
    ("lease", {"namespace": "default", "count": 0}, 400),
    ("lease", {"namespace": "default", "count": 9}, 400),
    ("lease", {"namespace": "default", "size_bytes": -1}, 400),
    ("lease", {"namespace": "default", "size_bytes": 1 << 40}, 400),
    ("lease", {"namespace": "default", "prefix": "../x"}, 400),
    ("lease", {"namespace": "nosuch"}, 404),
    ("stat", {"namespace": "default", "path": "a/.."}, 400),
    ("stat", {"namespace": "default", "path": "none"}, 404),
    ("resolve", {"namespace": "default", "path": "a", "version": 1, "first": -1, "count": 1}, 400),
    ("resolve", {"namespace": "default", "path": "a", "version": 1, "first": 0, "count": 129}, 400),
    ("report", {"reports": [[1, "v", 1, "bored", 1]]}, 400),
    ("report", {"reports": [[1, "v", 1, "error", 1]] * 257}, 400),
    ("events", {"limit": 0}, 400),
    ("copied", {"marks": [[1]]}, 400),
    ("token_create", {"name": "UPPER", "role": "reader"}, 400),
    ("token_create", {"name": "x", "role": "root"}, 400),
    ("token_create", {"name": "x", "role": "reader", "prefix": "p"}, 400),
    ("token_create", {"name": "x", "role": "reader", "namespace": "nosuch"}, 404),
    ("token_revoke", {"name": "nosuch"}, 404),
    ("namespace_create", {"name": "a/b"}, 400),
    ("namespace_create", {"name": "x", "primary_pool": "nosuch"}, 404),
    ("nosuch", {}, 404),
]


async def test_bad_calls_are_refused_with_a_code(coordinator: Running) -> None:
    for verb, body, expected in BAD_CALLS:
        status, reply = await coordinator.rpc(verb, body)
        assert status == expected, (verb, body, reply)
        assert reply["code"] in ("invalid", "not_found"), reply
        assert reply["message"]
        assert not reply["retryable"]


async def test_oversize_and_broken_requests_are_refused_and_the_server_lives(coordinator: Running) -> None:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    url = f"{coordinator.url}/rpc/lookup"
    async with coordinator.http.post(url, data=io.BytesIO(bytes(1024 * 1024 + 1)), headers=headers) as response:
        assert (response.status, (await response.json())["code"]) == (413, "too_large")
    async with coordinator.http.post(url, data=b"\x00not json", headers=headers) as response:
        assert (response.status, (await response.json())["code"]) == (400, "invalid")
    async with coordinator.http.get(url, headers=headers) as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
    for garbage in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9\r\n\r\n", b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n"):
        host, _, port = coordinator.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 60)
        assert b"Traceback" not in answer
        assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
        writer.close()
        await writer.wait_closed()
    assert (await coordinator.rpc("status", {}))[0] == 200


# -- what a node may not claim ---------------------------------------------------------------------
async def test_a_node_speaks_only_for_itself(coordinator: Running, node: PlayedNode) -> None:
    other = await PlayedNode.join(coordinator, "n2")
    try:
        with pytest.raises(Unauthorized):
            await other.call(
                "seal",
                internal.SealRequest(node.id, node.epoch, node.reply.extent),
                internal.SealReply,
                f"Node {node.id}:{'00' * 32}",
            )
        # X says that it is X and seals Y's extent; X says that it is Y.
        with pytest.raises(Forbidden):
            await other.call("seal", internal.SealRequest(node.id, node.epoch, node.reply.extent), internal.SealReply)
        capability = (await lease(coordinator))["capability"]
        old_length = node.length
        entry = node.entry(1, "stolen", b"bytes")
        request = internal.CommitRequest(
            node_id=other.id,
            epoch=other.epoch,
            extent=node.reply.extent,
            revision=node.revision,
            group=0,
            old_length=old_length,
            new_length=node.length,
            noted=[],
            entries=[entry],
            capabilities=[capability],
        )
        with pytest.raises((Forbidden, Fenced)):
            await other.call("commit", request, internal.CommitReply)
        assert (await coordinator.file("GET", "default/stolen"))[0] == 404
    finally:
        await other.close()


async def test_a_join_needs_the_join_token(coordinator: Running) -> None:
    node = PlayedNode(coordinator, "n9")
    for header in ("Join wrong", "Bearer " + ADMIN, "Join"):
        with pytest.raises(Unauthorized):
            await node.call("join", internal.JoinRequest("n9", bytes(16)), internal.JoinReply, header)


async def test_a_commit_is_checked_against_the_clients_own_right(coordinator: Running, node: PlayedNode) -> None:
    other = await namespace(coordinator, "other")
    for_default = (await lease(coordinator, prefix="team/a"))["capability"]
    for_other = (await lease(coordinator, "other"))["capability"]
    keys = derive_node_keys(b"x" * 32, node.id, 1)
    real = derive_node_keys(b"m" * 32, node.id, 1)
    now_ms = (await coordinator.rpc("lookup", {"namespace": "default", "paths": ["a"]}))[1]["cluster_time_ms"]

    def write(**changes: Any) -> str:
        fields = {
            "key_number": 1,
            "node_id": node.id,
            "volume": node.volume,
            "class_id": 1,
            "namespace": 1,
            "prefix": "",
            "max_bytes": 100,
            "expires_ms": now_ms + 60_000,
        }
        return seal_capability(WriteCapability(**(fields | changes)), real)

    reading = ReadCapability(1, node.id, node.reply.extent, 4096, 1, 1, now_ms + 60_000)
    cases: list[tuple[str, int, str, str]] = [
        ("its own namespace and prefix", 1, "team/a/x", for_default),
        ("outside of the prefix", 1, "team/ab", for_default),
        ("of one namespace, used for another", other, "team/a/x", for_default),
        ("of another namespace", 1, "x", for_other),
        ("forged", 1, "x", seal_capability(WriteCapability(1, node.id, 1, 1, 1, "", 9, now_ms + 9_000), keys)),
        ("for reading", 1, "x", seal_capability(reading, real)),
        ("for another class", 1, "x", write(class_id=2)),
        ("for smaller bodies", 1, "x", write(max_bytes=3)),
        ("for another node", 1, "x", write(node_id=node.id + 1)),
        ("long expired", 1, "x", write(expires_ms=now_ms - 121_000)),
        ("expired while the body was under way", 1, "late", write(expires_ms=now_ms - 60_000)),
        ("none", 1, "x", ""),
    ]
    allowed = {"its own namespace and prefix", "expired while the body was under way"}
    for what, namespace_id, path, capability in cases:
        result = await node.put(namespace_id, path, b"bytes", capability)
        assert result.outcome == ("committed" if what in allowed else "forbidden"), what
    _status, reply = await coordinator.rpc("list", {"namespace": "default"})
    assert [entry["path"] for entry in reply["entries"]] == ["late", "team/a/x"]
    _status, reply = await coordinator.rpc("list", {"namespace": "other"})
    assert reply["entries"] == []


# -- files by plain HTTP ---------------------------------------------------------------------------
async def test_a_small_file_comes_through_with_ranges_and_conditions(coordinator: Running, node: PlayedNode) -> None:
    capability = (await lease(coordinator))["capability"]
    payload = bytes(range(256)) * 4
    committed = await node.put(1, "dir/small file", payload, capability)
    await node.put(1, "empty", b"", capability)
    status, headers, content = await coordinator.file("GET", "default/dir/small%20file")
    assert (status, content) == (200, payload)
    assert headers["Copypool-Version"] == str(committed.version)
    assert headers["ETag"] == f'"{committed.version}"'
    assert headers["Copypool-Digest"].startswith("blake3:")
    assert (await coordinator.file("HEAD", "default/dir/small%20file"))[1]["Content-Length"] == "1024"
    part = await coordinator.file("GET", "default/dir/small%20file", Range="bytes=1000-")
    assert (part[0], part[1]["Content-Range"], part[2]) == (206, "bytes 1000-1023/1024", payload[1000:])
    outside = await coordinator.file("GET", "default/dir/small%20file", Range="bytes=1024-")
    assert (outside[0], outside[1]["Content-Range"]) == (416, "bytes */1024")
    assert (await coordinator.file("GET", "default/dir/small%20file", If_None_Match=headers["ETag"]))[0] == 304
    assert (await coordinator.file("GET", "default/empty"))[::2] == (200, b"")


async def test_the_short_way_answers_as_the_long_one(coordinator: Running, node: PlayedNode) -> None:
    capability = (await lease(coordinator))["capability"]
    for path, payload in (("a/b c", b"bytes"), ("empty", b""), ("one", b"x" * 200_000)):
        assert (await node.put(1, path, payload, capability)).outcome == "committed"
    scoped = await coordinator.token("scoped", "reader", "default", "a")
    paths = ["default/a/b%20c", "default/empty", "default/one", "default/absent", "none/a", "default/a//b"]
    paths += ["default/%ff", "default/", "default", "", "default/a/./b"]
    async with coordinator.another_client() as short, coordinator.another_client() as long:
        for path in paths:
            for token in (ADMIN, scoped, "unknown", ""):
                for accept in ("*/*", "application/msgpack"):
                    one = await short.file("GET", path, token, Accept=accept)
                    other = await long.file("GET", path, token, Accept=accept, **LONG_WAY)
                    assert one[0] == other[0], path
                    assert _without_date(one[1]) == _without_date(other[1])
                    assert one[2] == other[2]
        assert coordinator.short_connections == 1


def _without_date(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in headers.items() if name != "Date")


async def test_both_ways_are_counted_alike(coordinator: Running, node: PlayedNode) -> None:
    capability = (await lease(coordinator))["capability"]
    await node.put(1, "a", b"bytes", capability)
    async with coordinator.another_client() as short, coordinator.another_client() as long:
        for _ in range(3):
            assert (await short.file("GET", "default/a"))[2] == b"bytes"
            assert (await long.file("GET", "default/a", **LONG_WAY))[2] == b"bytes"
            assert (await short.file("GET", "default/absent"))[0] == 404
        assert coordinator.short_connections == 1
    async with coordinator.http.get(f"{coordinator.url}/metrics") as response:
        page = await response.text()
    route = 'route="GET /v1/files/"'
    assert f'copypool_coordinator_requests_total{{{route},code="ok"}} 6\n' in page
    assert f'copypool_coordinator_requests_total{{{route},code="not_found"}} 3\n' in page
    assert "copypool_coordinator_requests_in_work 1\n" in page


async def test_wrong_bytes_are_never_delivered(coordinator: Running, node: PlayedNode) -> None:
    capability = (await lease(coordinator))["capability"]
    await node.put(1, "a", b"right", capability)
    (place,) = node.payloads
    node.payloads[place] = b"wrong"
    status, _, content = await coordinator.file("GET", "default/a")
    assert status == 500
    assert b"digest_mismatch" in content
    assert b"wrong" not in content
    node.payloads[place] = b"right"
    assert (await coordinator.file("GET", "default/a"))[::2] == (200, b"right")


async def test_a_node_that_does_not_answer_is_unavailable_and_not_for_ever(
    coordinator: Running, node: PlayedNode
) -> None:
    capability = (await lease(coordinator))["capability"]
    await node.put(1, "a", b"right", capability)
    node.fail_reads = True
    status, _, content = await coordinator.file("GET", "default/a")
    assert status == 503
    assert b'"retryable":true' in content
    node.fail_reads = False
    assert (await coordinator.file("GET", "default/a"))[::2] == (200, b"right")


async def test_a_file_that_was_just_committed_is_found_though_memory_lags(
    coordinator: Running, node: PlayedNode
) -> None:
    """A14: an extent that memory does not know (yet) is read together with the row."""
    capability = (await lease(coordinator))["capability"]
    await node.put(1, "a", b"right", capability)
    catalog = coordinator.coordinator._catalog
    assert catalog is not None
    await eventually(lambda: node.reply.extent in catalog.view.extents, "memory knows the extent")
    known = catalog.view.extents.pop(node.reply.extent)
    assert (await coordinator.file("GET", "default/a"))[::2] == (200, b"right")
    catalog.view.extents[node.reply.extent] = known


async def test_many_readers_share_transactions_and_node_calls(coordinator: Running, node: PlayedNode) -> None:
    capability = (await lease(coordinator))["capability"]
    for number in range(8):
        await node.put(1, f"f{number}", b"%d" % number, capability)
    node.reads = 0
    answers = await asyncio.gather(*(coordinator.file("GET", f"default/f{number % 8}") for number in range(64)))
    assert [content for _, _, content in answers] == [b"%d" % (number % 8) for number in range(64)]
    assert node.reads < 48


async def test_a_put_is_sent_to_a_node_with_a_right_to_this_path_alone(coordinator: Running, node: PlayedNode) -> None:
    status, headers, content = await coordinator.file("PUT", "default/new%20file", Content_Length="0")
    assert (status, content) == (307, b"")
    assert headers["Location"].startswith(f"{node.url}/v1/files/1/new%20file?cap=")
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "&wid=" in headers["Location"]
    large = await coordinator.file("PUT", "default/x", Content_Length=str(1 << 40))
    assert large[0] == 413


async def test_a_delete_repeats_its_write_id_and_never_guesses(coordinator: Running, node: PlayedNode) -> None:
    other = await PlayedNode.join(coordinator, "n2")
    try:
        status, _, content = await coordinator.file("DELETE", "default/a", Copypool_Write_Id="00112233aabbccdd")
        assert status == 503
        assert b'"retryable":true' in content
        assert {*node.deleted, *other.deleted} == {("/v1/files/1/a", "00112233aabbccdd")}
        assert len(node.deleted) == len(other.deleted) == 1
    finally:
        await other.close()


# -- health ----------------------------------------------------------------------------------------
async def test_metrics_name_routes_and_no_paths(coordinator: Running) -> None:
    await coordinator.file("GET", "default/secret-name")
    await coordinator.rpc("nosuch-secret", {})
    async with coordinator.http.get(f"{coordinator.url}/metrics") as response:
        text = await response.text()
    assert 'copypool_coordinator_requests_total{route="GET /v1/files/",code="not_found"} 1' in text
    assert 'copypool_coordinator_requests_total{route="unknown",code="not_found"} 1' in text
    assert "secret" not in text

    async def told() -> bool:
        """What cannot be asked of etcd within two seconds is left out of a page."""
        async with coordinator.http.get(f"{coordinator.url}/metrics") as response:
            page = metrics_page.check(await response.text(), metrics.FAMILIES)
        names = ("copypool_coordinator_mirror_revision", "copypool_etcd_db_bytes", "copypool_etcd_members_up")
        return all(page[name].samples and page[name].samples[0].value > 0 for name in names)

    await eventually(told, "the page tells of etcd")
