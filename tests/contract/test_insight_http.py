"""Proofs, explanations and the event log over HTTP on a real etcd: exact by pages, by role and by scope."""

from __future__ import annotations

from typing import Any

import msgspec

from copypool.protocol.insight import Coverage, ProveReply
from kit.coordinator_process import PlayedNode, Running
from kit.eventually import eventually

GROUP = 110


async def store(coordinator: Running, node: PlayedNode, paths: list[str]) -> None:
    """Commit files of one byte, group by group."""
    status, reply = await coordinator.rpc("lease", {"namespace": "default"})
    assert status == 200, reply
    capability = reply["leases"][0]["capability"]
    for first in range(0, len(paths), GROUP):
        old_length = node.length
        entries = [node.entry(1, path, b"x") for path in paths[first : first + GROUP]]
        done = await node.commit(entries, [capability], old_length=old_length)
        assert {result.outcome for result in done.results} == {"committed"}


async def page(coordinator: Running, body: dict[str, Any], token: str | None = None) -> ProveReply:
    status, reply = await coordinator.rpc("prove", body, *([token] if token else []))
    assert status == 200, reply
    return msgspec.convert(reply, ProveReply)


async def prove(coordinator: Running, body: dict[str, Any], token: str | None = None) -> tuple[Coverage, int]:
    """The whole proof, and in how many pages it came."""
    total, pages, after = Coverage(), 0, ""
    while True:
        reply = await page(coordinator, {**body, "after": after}, token)
        total.add(reply.coverage)
        pages += 1
        if not reply.next_after:
            return total, pages
        after = reply.next_after


async def test_a_proof_by_pages_counts_every_file_once_and_is_exact_per_page(
    coordinator: Running, node: PlayedNode
) -> None:
    paths = [f"many/{number:05}" for number in range(2_200)]
    await store(coordinator, node, paths)
    total, pages = await prove(coordinator, {"namespace": "default", "prefix": "many/"})
    assert pages >= 3
    assert (total.files, total.bytes) == (2_200, 2_200)
    assert [(each.count, each.files) for each in total.copies] == [(1, 2_200)]
    assert not total.proven, "there is no copy anywhere"
    assert total.problems[0].what == "many/00000"
    assert total.problems[0].why == "no good location in pool 'copy'"

    first = await page(coordinator, {"namespace": "default", "prefix": "many/"})
    await store(coordinator, node, ["many/00000a", "many/99999"])  # behind and ahead of the cursor
    rest, cursor = 0, first.next_after
    while cursor:
        reply = await page(coordinator, {"namespace": "default", "prefix": "many/", "after": cursor})
        rest, cursor = rest + reply.coverage.files, reply.next_after
    assert first.coverage.files + rest == 2_201

    by_extents, _ = await prove(coordinator, {})
    by_pool, _ = await prove(coordinator, {"pool": "primary"})
    assert by_extents.files == by_pool.files >= 2_202
    status, reply = await coordinator.rpc("occupancy", {})
    assert status == 200
    records = {(item["namespace"], item["pool"]): item["records"] for item in reply["items"]}
    assert records["default", "primary"] == by_extents.files


async def test_each_verb_needs_its_role(coordinator: Running, node: PlayedNode) -> None:
    await store(coordinator, node, ["role/a"])
    reader = await coordinator.token("r1", "reader")
    operator = await coordinator.token("o1", "operator")
    verbs: dict[str, tuple[str, dict[str, Any]]] = {
        "prove": ("reader", {}),
        "explain": ("reader", {"namespace": "default", "path": "role/a"}),
        "log": ("operator", {}),
        "occupancy": ("operator", {}),
        "content": ("operator", {"volume": "n1-v1"}),
        "content_files": ("operator", {"volume": "n1-v1", "namespace": "default"}),
    }
    for verb, (role, body) in verbs.items():
        status, reply = await coordinator.rpc(verb, body, reader)
        assert status == (200 if role == "reader" else 403), (verb, reply)
        status, reply = await coordinator.rpc(verb, body, operator)
        assert status in (200, 404), (verb, reply)


async def test_a_scoped_token_sees_its_own_files_and_no_more(coordinator: Running, node: PlayedNode) -> None:
    await store(coordinator, node, ["team/a/x", "team/a/y", "team/ab", "team/b"])
    token = await coordinator.token("team", "reader", "default", "team/a")
    total, _ = await prove(coordinator, {"namespace": "default"}, token)
    assert total.files == 2
    status, _ = await coordinator.rpc("explain", {"namespace": "default", "path": "team/a/x"}, token)
    assert status == 200
    refused: list[tuple[str, dict[str, Any], int]] = [
        ("prove", {}, 403),
        ("prove", {"pool": "copy"}, 403),
        ("prove", {"namespace": "absent"}, 404),
        ("explain", {"namespace": "default", "path": "team/ab"}, 404),
        ("explain", {"namespace": "absent", "path": "a"}, 404),
        ("copied", {"namespace": "absent"}, 404),
        ("log", {}, 403),
        ("occupancy", {}, 403),
    ]
    for verb, body, code in refused:
        status, reply = await coordinator.rpc(verb, body, token)
        assert status == code, (verb, body, reply)
    status, reply = await coordinator.rpc("namespace_create", {"name": "secret", "copy_pools": []})
    assert status == 200, reply

    async def known() -> bool:
        return "secret" in str((await coordinator.rpc("status", {}))[1]["warnings"])

    await eventually(known, "an operator is warned of a namespace without copies")
    _, reply = await coordinator.rpc("status", {}, token)
    assert [each["namespace"] for each in reply["namespaces"]] == ["default"]
    assert "secret" not in str(reply)


async def test_nonsense_is_refused(coordinator: Running) -> None:
    for verb, body in (
        ("prove", {"prefix": "a"}),
        ("prove", {"pool": "primary", "namespace": "default"}),
        ("prove", {"after": "x"}),
        ("prove", {"after": "9" * 40}),
        ("prove", {"namespace": "default", "prefix": "a\0"}),
        ("log", {"limit": 0}),
        ("log", {"after": "x" * 100}),
        ("log", {"since_unix_s": -1}),
        ("log_chain", {"id": ""}),
        ("log_chain", {"id": "../x"}),
        ("content", {"volume": "v", "limit": 10**6}),
    ):
        status, reply = await coordinator.rpc(verb, body)
        assert (status, reply["code"]) == (400, "invalid"), (verb, body, reply)
    for verb, body in (
        ("prove", {"pool": "absent"}),
        ("log_chain", {"id": "abc"}),
        ("content", {"volume": "absent"}),
        ("explain", {"namespace": "default", "path": "absent"}),
    ):
        status, reply = await coordinator.rpc(verb, body)
        assert (status, reply["code"]) == (404, "not_found"), (verb, body, reply)


async def test_events_are_filtered_and_followed_by_cursor(coordinator: Running, node: PlayedNode) -> None:
    async def elected() -> list[dict[str, Any]]:
        _, reply = await coordinator.rpc("log", {"kinds": ["LeaderElected"]})
        found: list[dict[str, Any]] = reply["events"]
        return found

    async def is_told() -> bool:
        return bool(await elected())

    await eventually(is_told, "the election is in the log")
    event = (await elected())[-1]
    _, reply = await coordinator.rpc("log", {"kinds": ["LeaderElected"], "after": event["id"]})
    assert reply["events"] == []
    assert not reply["more"]
    _, reply = await coordinator.rpc("log", {"kinds": ["LeaderElected"], "since_unix_s": event["unix_s"] - 1})
    assert event in reply["events"]
    _, reply = await coordinator.rpc("log_chain", {"id": event["id"]})
    assert reply["events"] == [event]
