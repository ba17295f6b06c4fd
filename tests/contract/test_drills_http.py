"""Drills over HTTP on a real etcd: samples by parts, losses by pages, evidence in the log, all for operators alone."""

from __future__ import annotations

from typing import Any

import msgspec

from copypool.protocol.drills import LossCounts, LossFilesReply, LossForecast, LossReport, ReadDrill, SampleReply
from copypool.protocol.insight import Problem
from copypool_coordinator.keys import is_fence
from kit.coordinator_process import PlayedNode, Running, running_coordinator
from kit.eventually import eventually

GROUP = 110


async def store(coordinator: Running, node: PlayedNode, paths: list[str]) -> None:
    """Commit files of one byte, group by group."""
    status, reply = await coordinator.rpc("lease", {"namespace": "default", "count": 8})
    assert status == 200, reply
    capability = next(lease["capability"] for lease in reply["leases"] if lease["node"] == node.name)
    for first in range(0, len(paths), GROUP):
        old_length = node.length
        entries = [node.entry(1, path, b"x") for path in paths[first : first + GROUP]]
        done = await node.commit(entries, [capability], old_length=old_length)
        assert {result.outcome for result in done.results} == {"committed"}


async def ask(coordinator: Running, verb: str, body: Any) -> Any:
    status, reply = await coordinator.rpc(verb, body)
    assert status == 200, reply
    return reply


async def sampled(coordinator: Running, seed: int, count: int, *, everything: bool = False) -> list[str]:
    """The sample as a caller draws it."""
    found: list[str] = []
    part, left = 0, False
    while len(found) < count or everything:
        body = {"count": count, "seed": seed, "namespace": "default", "part": part}
        reply = msgspec.convert(await ask(coordinator, "drill_sample", body), SampleReply)
        assert {file.copies for file in reply.files} <= {"debt"}, "nothing was copied"
        found += [file.path for file in reply.files]
        part, left = reply.next_part, left or reply.more
        if part % reply.parts == 0:
            if not left:
                break
            left = False
    return found if everything else found[:count]


async def test_a_sample_is_complete_without_repeats_and_the_same_for_its_seed(
    coordinator: Running, node: PlayedNode
) -> None:
    paths = [f"many/{number:05}" for number in range(2_600)]
    await store(coordinator, node, paths)
    cuts = sum(is_fence(path) for path in paths)
    assert cuts > 0

    async def parts() -> bool:
        body = {"count": 1, "seed": 1, "namespace": "default", "part": 0}
        return msgspec.convert(await ask(coordinator, "drill_sample", body), SampleReply).parts == cuts + 1

    # A fence that comes to be known between two parts moves the others; who draws passes over what comes twice.
    await eventually(parts, "the coordinator knows of every fence")
    everything = await sampled(coordinator, 1, 2_000, everything=True)
    assert sorted(path for path in everything if path.startswith("many/")) == paths
    some = await sampled(coordinator, 1, 40)
    assert len(set(some)) == 40
    assert await sampled(coordinator, 1, 40) == some
    assert await sampled(coordinator, 2, 40) != some


async def test_a_loss_counts_every_file_once_by_pages_and_names_as_many_as_asked_for(
    coordinator: Running, node: PlayedNode
) -> None:
    await store(coordinator, node, [f"page/{number:05}" for number in range(2_300)])
    forecast = msgspec.convert(await ask(coordinator, "drill_lose_node", {"node": "n1"}), LossForecast)
    assert (forecast.unavailable_extents, forecast.served_extents) == (forecast.extents, 0)
    assert forecast.lost_bytes == forecast.unavailable_bytes > 0
    assert forecast.blocked_extents == forecast.extents
    assert forecast.namespaces == ["default"]
    assert forecast.rebuild_bytes == 0
    assert forecast.eta_s == 0.0
    assert any("would take no writes" in warning for warning in forecast.warnings)

    counts, names, pages, after = LossCounts(), 0, 0, ""
    while True:
        body = {"node": "n1", "namespace": "default", "after": after, "names": 10}
        page = msgspec.convert(await ask(coordinator, "drill_lose_node_files", body), LossFilesReply)
        assert len(page.files) <= 10
        assert all(file.state == "unavailable" and file.lost and not file.before for file in page.files)
        counts.add(page.counts)
        names, pages, after = names + len(page.files), pages + 1, page.next_after
        if not after:
            break
    assert pages >= 3
    assert names <= 10 * pages
    listed, after = 0, ""
    while True:
        listing = await ask(coordinator, "list", {"namespace": "default", "after": after})
        listed, after = listed + len(listing["entries"]), listing.get("next_after", "")
        if not after:
            break
    assert counts.unavailable_files == counts.lost_files == listed


async def test_a_loss_is_about_files_with_bytes_on_the_node(coordinator: Running, node: PlayedNode) -> None:
    other = await PlayedNode.join(coordinator, "n2")
    try:
        await other.open()
        await store(coordinator, other, [f"other/{number}" for number in range(5)])
        await store(coordinator, node, ["here"])
        body = {"node": "n2", "namespace": "default", "names": 100}
        page = msgspec.convert(await ask(coordinator, "drill_lose_node_files", body), LossFilesReply)
        while page.next_after and not page.files:
            body["after"] = page.next_after
            page = msgspec.convert(await ask(coordinator, "drill_lose_node_files", body), LossFilesReply)
        assert [file.path for file in page.files] == [f"other/{number}" for number in range(5)]
        assert page.counts == LossCounts(5, 5, 5, 5)
    finally:
        await other.close()


async def test_a_loss_names_the_others_that_are_silent_while_their_sessions_live(endpoint: str) -> None:
    async with running_coordinator(endpoint, session_ttl_s=15) as coordinator:
        silent = await PlayedNode.join(coordinator, "mute")
        lost = await PlayedNode.join(coordinator, "lost")
        try:
            await silent.open()
            await lost.open()

            async def named() -> bool:
                reply = await ask(coordinator, "drill_lose_node", {"node": "lost"})
                return "mute" in msgspec.convert(reply, LossForecast).silent

            assert not await named()
            await eventually(named, "a node that has missed three heartbeats is named")
            reply = msgspec.convert(await ask(coordinator, "drill_lose_node", {"node": "lost"}), LossForecast)
            assert "lost" not in reply.silent
        finally:
            await silent.close()
            await lost.close()


async def test_the_log_keeps_what_a_drill_found(coordinator: Running) -> None:
    drill = ReadDrill(7, 100, "default", read_files=98, read_bytes=5_000, debt_files=2, took_s=2.0)
    drill.problems = [Problem("default/a", "not copied yet")]
    kept = await ask(coordinator, "drill_read_done", msgspec.to_builtins(drill))
    (event,) = (await ask(coordinator, "log", {"kinds": ["DrillReadFromCopies"]}))["events"]
    assert event["id"] == kept["event"]
    assert event["message"].startswith("not passed: 98 of 100 sampled files of namespace default")
    assert "5000 bytes at 2500 bytes/s" in event["message"]
    assert "seed 7" in event["message"]
    assert "default/a: not copied yet" in event["message"]

    await node_known(coordinator)
    forecast = msgspec.convert(await ask(coordinator, "drill_lose_node", {"node": "quiet"}), LossForecast)
    report = LossReport(forecast, LossCounts(), [])
    assert report.passed, "there is nothing on it"
    await ask(coordinator, "drill_lose_node_done", msgspec.to_builtins(report))
    events = (await ask(coordinator, "log", {"kinds": ["DrillLoseNode"], "node": "quiet"}))["events"]
    assert [event["message"][:7] for event in events] == ["passed:"]


async def node_known(coordinator: Running) -> None:
    played = await PlayedNode.join(coordinator, "quiet")
    await played.close()


VERBS: dict[str, Any] = {
    "drill_sample": {"count": 1, "seed": 1},
    "drill_read_done": {"seed": 1, "wanted": 1},
    "drill_lose_node": {"node": "n1"},
    "drill_lose_node_files": {"node": "n1", "namespace": "default"},
}


async def test_drills_are_for_operators_of_all_namespaces(coordinator: Running, node: PlayedNode) -> None:
    writer = await coordinator.token("w1", "writer")
    limited = await coordinator.token("o1", "operator", namespace="default")
    operator = await coordinator.token("o2", "operator")
    for verb, body in VERBS.items():
        assert (await coordinator.rpc(verb, body, writer))[0] == 403, verb
        assert (await coordinator.rpc(verb, body, limited))[0] == 403, verb
        status, reply = await coordinator.rpc(verb, body, operator)
        assert status == 200, (verb, reply)


async def test_nonsense_is_refused(coordinator: Running) -> None:
    for verb, body in (
        ("drill_sample", {"count": 0, "seed": 1}),
        ("drill_sample", {"count": 10**9, "seed": 1}),
        ("drill_sample", {"count": 1, "seed": -1}),
        ("drill_sample", {"count": 1, "seed": 1, "part": -1}),
        ("drill_sample", {"count": 1, "seed": 1, "namespace": "a/b"}),
        ("drill_lose_node", {"node": "../x"}),
        ("drill_lose_node_files", {"node": "n1", "namespace": "default", "names": 10**6}),
        ("drill_lose_node_files", {"node": "n1", "namespace": "default", "after": "a\0"}),
    ):
        status, reply = await coordinator.rpc(verb, body)
        assert (status, reply["code"]) == (400, "invalid"), (verb, body, reply)
    for verb, body in (
        ("drill_sample", {"count": 1, "seed": 1, "namespace": "absent"}),
        ("drill_lose_node", {"node": "absent"}),
        ("drill_lose_node_files", {"node": "absent", "namespace": "default"}),
    ):
        status, reply = await coordinator.rpc(verb, body)
        assert (status, reply["code"]) == (404, "not_found"), (verb, body, reply)
