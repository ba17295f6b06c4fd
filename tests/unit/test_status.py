"""Green is proven, and every other colour says why (invariant 8)."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from copypool.cli.output import status_text
from copypool.protocol.api import CopiedReply
from copypool.protocol.errors import Invalid
from copypool.protocol.internal import HeartbeatRequest
from copypool.telemetry.metrics import render
from copypool_coordinator import keys, lists, locations, protection_metrics, status, waiting
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.offpolicy import OffPolicy
from copypool_coordinator.policy import places
from copypool_coordinator.rows import (
    FORMAT,
    ClassRow,
    ClockRow,
    CoordinatorRow,
    CountersRow,
    NamespaceRow,
)
from copypool_coordinator.runner import trouble
from kit.seen_status import Seen, only
from kit.toy_cluster import CLASS, MIB, PRIMARY, ToyCluster
from kit.toy_extent import E, whole_copied


async def test_an_empty_cluster_is_green_and_proves_nothing() -> None:
    seen = Seen(ToyCluster())
    reply = await seen.status()
    assert (reply.healthy, reply.empty) == (True, True)
    assert status_text(reply).startswith("OK: empty: nothing to prove")
    whole_copied(seen.cluster)
    assert not (await seen.status()).empty


async def test_a_catalog_without_a_node_is_not_green() -> None:
    """An empty etcd in the place of a full one must not look like a healthy cluster."""
    assert "no storage node" in only(await Seen(ToyCluster(primary_nodes=0, copy_nodes=0)).status())


async def test_copied_and_read_back_is_green_and_named() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    seen.cluster.put(keys.named(keys.COORDINATOR, "c1"), CoordinatorRow(FORMAT, "http://c1", 0))
    seen.cluster.put(keys.named(keys.COUNTERS, "c1"), CountersRow(FORMAT, 10, 40 * MIB, 5_000, {}))
    reply = await seen.status()
    assert reply.healthy
    assert (reply.files, reply.bytes, reply.as_of_unix_s) == (10, 40 * MIB, 5.0)
    assert (reply.leader, reply.coordinator) == ("coordinator1", "coordinator2")


async def test_debt_is_bytes_extents_and_age() -> None:
    seen = Seen(ToyCluster())
    seen.cluster.open_extent(E, writer=1, length=MIB)
    seen.cluster.wait(30_000)
    reply = await seen.status()
    assert (reply.debt_bytes, reply.debt_extents, reply.debt_oldest_s) == (MIB - 4096, 1, 30.0)
    assert reply.under_protected_extents == 1
    assert "have no copy in pool 'copy' yet" in only(reply)
    assert reply.unverified_bytes == 0, "debt is counted once"


async def test_young_bytes_are_green_and_are_not_called_read_back() -> None:
    seen = Seen(ToyCluster())
    seen.cluster.open_extent(E, writer=1, length=MIB)
    seen.cluster.settle()
    reply = await seen.status()
    assert (reply.healthy, reply.unverified_bytes) == (True, MIB)
    assert status_text(reply).startswith("OK: every live byte is where policy says; 1.0 MiB are young")
    seen.cluster.seal(E)
    assert (await seen.status()).unverified_bytes == MIB
    seen.cluster.wait(seen.cluster.policy.first_verify_delay_ms)
    seen.cluster.settle()
    reply = await seen.status()
    assert (reply.healthy, reply.unverified_bytes) == (True, 0)
    assert status_text(reply).startswith("OK: every live byte is proven")


async def test_sealed_but_not_read_back_is_not_yet_green() -> None:
    seen = Seen(ToyCluster())
    seen.cluster.open_extent(E, writer=1, length=MIB)
    seen.cluster.settle()
    seen.cluster.seal(E)
    reply = await seen.status()
    assert reply.unverified_bytes == MIB
    assert only(reply).startswith(f"{MIB} bytes not yet read back")


async def test_old_proof_is_no_proof() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    seen.cluster.wait(2 * seen.cluster.policy.scrub_period_ms + 1_000)
    reply = await seen.status()
    assert "the scrub is behind" in only(reply)
    assert reply.unverified_bytes == 40 * MIB


async def test_a_lost_node_is_waited_for_then_rebuilt_and_then_green_without_it() -> None:
    seen = Seen(ToyCluster())
    cluster = seen.cluster
    whole_copied(cluster)
    cluster.down(1)
    cluster.settle()
    cluster.wait(20_000)
    assert "waiting for node1 for 39 s more" in only(await seen.status())
    cluster.wait(cluster.policy.grace_ms)
    assert only(await seen.status()).endswith("being rebuilt from copies")
    cluster.settle()
    reply = await seen.status()
    assert reply.healthy
    assert [node.state for node in reply.nodes] == ["away", "up", "up", "up"]


async def test_a_node_that_was_taken_out_is_not_away() -> None:
    """Its volumes were deleted, then its pod stopped: nothing is missing with it, and it is not coming back."""
    seen = Seen(ToyCluster(primary_nodes=3))
    cluster = seen.cluster
    cluster.delete_volume(1)
    cluster.down(1)
    left_ms = cluster.now_ms
    cluster.settle()
    cluster.wait(60_000)
    listed = {node.name: node for node in lists.nodes(cluster.view, await seen.facts())}
    assert listed["node1"].taken_out
    assert listed["node1"].away_since_unix_s == left_ms / 1000
    assert not any(node.taken_out for name, node in listed.items() if name != "node1")
    reply = await seen.status()
    assert "node1" not in {node.name for node in reply.nodes}
    assert "4 of 4 up" in status_text(reply)
    assert 'nodes{state="away"} 0' in render(protection_metrics.page(reply, {}))

    cluster.up(1)
    assert not lists.nodes(cluster.view, await seen.facts())[0].taken_out


async def test_one_primary_node_says_what_it_cannot_do() -> None:
    """B9: there is nothing to rebuild on, and that is said, not silent."""
    seen = Seen(ToyCluster(primary_nodes=1))
    whole_copied(seen.cluster)
    seen.cluster.down(1)
    seen.cluster.settle()
    seen.cluster.wait(seen.cluster.policy.grace_ms)
    reply = await seen.status()
    assert any("no second primary volume to rebuild on" in reason for reason in reply.reasons)


async def test_a_cluster_without_copy_volumes_says_so() -> None:
    seen = Seen(ToyCluster(copy_nodes=0))
    seen.cluster.open_extent(E, writer=1, length=MIB)
    reply = await seen.status()
    assert any("pool 'copy' has no volume" in reason for reason in reply.reasons)


async def test_damage_is_shown_where_it_is() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    seen.cluster.mark(E, 1, "damaged")
    reply = await seen.status()
    assert reply.damaged_locations == 1
    assert any("damaged" in reason for reason in reply.reasons)
    facts = await seen.facts()
    (entry,) = lists.damaged(seen.cluster.view, facts).locations
    assert (entry.extent, entry.volume, entry.node, entry.evidence) == (E, "volume1", "node1", "found bad")
    by_name = {volume.name: volume.damaged for volume in lists.volumes(seen.cluster.view, facts)}
    assert by_name == {"volume1": 1, "volume2": 0, "volume3": 0, "volume4": 0}


async def test_files_that_only_an_absent_node_has_are_unavailable_until_its_volume_is_destroyed() -> None:
    seen = Seen(ToyCluster())
    cluster = seen.cluster
    cluster.open_extent(E, writer=1, length=30_000)
    cluster.settle()
    cluster.write(E, 40_000)
    cluster.down(1)
    cluster.settle()
    reply = await seen.status()
    assert (reply.unavailable_files, reply.lost_files) == (10, 0)
    assert any("come back with node1" in reason for reason in reply.reasons)
    cluster.set_access(1, "destroyed")
    reply = await seen.status()
    assert (reply.unavailable_files, reply.lost_files) == (0, 10)


async def test_files_that_only_damaged_locations_reach_are_counted_apart_and_the_lost_are_called_lost() -> None:
    seen = Seen(ToyCluster())
    cluster = seen.cluster
    whole_copied(cluster, 40_000)
    (copy,) = [each.volume for each in cluster.row(E).locations if each.volume != 1]

    def mark(volume: int, bad_offset: int) -> None:
        row = cluster.row(E)
        location = cluster.location(E, volume)
        cluster.put_extent(E, locations.marked(row, location, "damaged", "bad", cluster.now_ms, bad_offset=bad_offset))

    mark(1, 5_000)
    assert (await seen.status()).doubtful_files == 0, "the copy is whole"
    mark(copy, 9_000)
    reply = await seen.status()
    assert (reply.unavailable_files, reply.doubtful_files, reply.lost_files) == (0, 40, 0)
    assert any("40 files are in 1 extents whose every location is damaged" in reason for reason in reply.reasons)
    assert "up to 40 on damaged locations alone" in status_text(reply)
    assert (reply.holed_extents, "hold lost bytes" in status_text(reply)) == (0, False)

    cluster.put_extent(E, locations.verified(cluster.row(E), cluster.location(E, copy), 40_000, b"", 1))
    mark(copy, 5_000)
    reply = await seen.status()
    assert reply.doubtful_files == 40
    assert any(
        "bad on every location" in reason and "`copypool query damaged --files`" in reason for reason in reply.reasons
    )
    assert reply.holed_extents == 1
    assert "0 lost, up to 40 on damaged locations alone; 1 extents hold lost bytes" in status_text(reply)
    (said,) = [reason for reason in reply.reasons if "hold lost bytes" in reason]
    assert "up to 40 are concerned, by the extents' records (files deleted lately are still among them)" in said
    assert "store the readable files of the extent again" in said, "the way out that works today"
    row = cluster.row(E)
    cluster.put_extent(E, replace(row, dead_records=row.records))
    reply = await seen.status()
    assert (reply.doubtful_files, reply.lost_files, reply.holed_extents, reply.healthy) == (0, 0, 1, False)
    assert any("but no file that is left: nothing is to be done about them" in reason for reason in reply.reasons)
    cluster.put_extent(E, row)
    for volume in (1, copy):
        cluster.set_access(volume, "destroyed")
    reply = await seen.status()
    assert (reply.doubtful_files, reply.lost_files) == (0, 40)


async def test_deleted_files_are_neither_unavailable_nor_lost() -> None:
    seen = Seen(ToyCluster())
    cluster = seen.cluster
    cluster.open_extent(E, writer=1, length=40_000)
    cluster.seal(E)
    cluster.put_extent(E, replace(cluster.row(E), dead_records=38))
    cluster.down(1)
    cluster.settle()
    assert (await seen.status()).unavailable_files == 2


async def test_the_brake_is_a_reason() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    for node in (1, 2):
        seen.cluster.down(node)
    seen.cluster.settle()
    reply = await seen.status()
    assert reply.brake
    assert reply.brake in reply.reasons


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heard_age_s": 9.0}, "has not heard from etcd for 9 s"),
        ({"sampled": False}, "etcd did not tell"),
        ({"pending": 3}, "3 changed extents"),
    ],
)
async def test_what_is_not_known_is_not_green(changes: dict[str, object], words: str) -> None:
    assert words in only(await Seen(ToyCluster()).status(**changes))


def heard(cluster: ToyCluster, ages_s: dict[int, float]) -> Heartbeats:
    """Heartbeats of these nodes, in the epochs that they are in, so many seconds ago."""
    beats = Heartbeats()
    for node, age_s in ages_s.items():
        epoch = cluster.view.sessions[node].mod_revision
        beats.note(HeartbeatRequest(node, epoch, 0, []), cluster.now_ms / 1000 - age_s)
    return beats


async def test_a_node_that_is_silent_for_three_heartbeats_is_not_green_before_its_session_ends() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    fresh = {2: 0.5, 3: 1.0, 4: 2.9}
    assert (await seen.status(heartbeats=heard(seen.cluster, {1: 8.9, **fresh}))).healthy
    reply = await seen.status(heartbeats=heard(seen.cluster, {1: 9.1, **fresh}))
    assert only(reply) == "node1 silent for 9 s: away when the session ends without a word"
    assert [node.state for node in reply.nodes] == ["silent", "up", "up", "up"]
    assert "node1 is silent: last heard 9.1 s ago" in status_text(reply)
    assert "3 of 4 up" in status_text(reply)


async def test_a_coordinator_that_has_just_begun_knows_no_heartbeats_and_calls_nobody_silent() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    reply = await seen.status(heartbeats=heard(seen.cluster, {2: 0.5}))
    assert reply.healthy
    assert [node.heartbeat_age_s for node in reply.nodes] == [None, 0.5, None, None]


async def test_a_node_that_has_just_registered_anew_is_not_silent() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    beats = heard(seen.cluster, {1: 60.0, 2: 0.5})
    seen.cluster.up(1)
    assert (await seen.status(heartbeats=beats)).healthy


async def test_a_coordinator_that_hears_nobody_blames_itself() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    reply = await seen.status(heartbeats=heard(seen.cluster, dict.fromkeys(range(1, 5), 20.0)))
    assert only(reply) == "coordinator2 has heard no node for 20 s: it may be cut off from them"


async def test_a_heartbeat_that_came_while_the_answer_was_made_has_no_negative_age() -> None:
    seen = Seen(ToyCluster())
    reply = await seen.status(heartbeats=heard(seen.cluster, {1: -0.2}))
    assert reply.nodes[0].heartbeat_age_s == 0.0


async def test_without_etcd_the_first_line_says_so() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    reply = await seen.status(catalog_down=True, current=False, sampled=False, heard_age_s=42.0)
    assert reply.catalog_down
    assert only(reply).startswith("etcd does not answer (catalog_down)")
    text = status_text(reply)
    assert text.startswith("NOT OK: etcd does not answer (catalog_down)")
    assert "42 s old" in text
    assert "catalog does not answer" in text
    assert "4 of 4 up when etcd was last heard" in text


async def test_no_leader_is_not_green() -> None:
    seen = Seen(ToyCluster())
    seen.cluster.delete(keys.LEADER)
    assert "no coordinator leads" in only(await seen.status())


async def test_changed_extents_beyond_the_limit_are_pending_and_come_next() -> None:
    cluster = ToyCluster()
    for extent in range(300):
        cluster.open_extent(extent, writer=1, length=MIB)
    index = OffPolicy()
    opened = dict(cluster.opened)
    await index.refresh(cluster.view, places(cluster.view), opened, cluster.policy, cluster.now_ms, 100)
    assert index.pending > 0
    while index.pending:
        before = index.pending
        await index.refresh(cluster.view, places(cluster.view), opened, cluster.policy, cluster.now_ms, 100)
        assert index.pending < before
    assert len(index.marks) == 300


async def test_who_plans_sees_what_an_answer_looked_at() -> None:
    cluster = ToyCluster()
    index = OffPolicy()
    index.looked = {}
    cluster.open_extent(E, writer=1, length=MIB)
    await index.refresh(cluster.view, places(cluster.view), dict(cluster.opened), cluster.policy, cluster.now_ms, 10)
    await index.refresh(cluster.view, places(cluster.view), dict(cluster.opened), cluster.policy, cluster.now_ms, 10)
    assert E in index.take_looked()


async def test_pools_show_their_debt_and_volumes() -> None:
    seen = Seen(ToyCluster())
    seen.cluster.open_extent(E, writer=1, length=MIB)
    infos = {info.name: info for info in lists.pools(seen.cluster.view, await seen.facts())}
    assert infos["copy"].debt_bytes == MIB - 4096
    assert (infos["primary"].volumes, infos["primary"].nodes, infos["primary"].extents) == (2, 2, 1)


# -- wait --copied ---------------------------------------------------------------------------------
async def ask(seen: Seen, marks: list[list[int]] | None = None) -> CopiedReply:
    facts = await seen.facts()
    view = seen.cluster.view
    taken = waiting.take_marks(view, facts.marks, seen.cluster.opened) if marks is None else marks
    return waiting.reply(waiting.unreached(view, taken, facts.places, {}), facts.marks)


async def test_waiting_ends_when_what_was_committed_before_is_copied_whatever_came_later() -> None:
    seen = Seen(ToyCluster())
    cluster = seen.cluster
    cluster.open_extent(E, writer=1, length=MIB)
    first = await ask(seen)
    assert (first.done, first.marks, first.debt_bytes) == (False, [[E, MIB]], MIB - 4096)
    cluster.settle()
    cluster.write(E, 2 * MIB)
    second = await ask(seen, first.marks)
    assert second.done
    assert second.debt_extents == 1, "the later bytes are debt, and nobody asked for them"


async def test_waiting_goes_on_when_the_copy_that_was_there_is_gone() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    assert (await ask(seen)).done
    seen.cluster.mark(E, 3, "damaged")
    assert not (await ask(seen)).done


@pytest.mark.parametrize("marks", [[[1]], [[1, 2, 3]], [[-1, 5]], [[1, -5]]])
def test_marks_that_no_call_gave_out_are_refused(marks: list[list[int]]) -> None:
    with pytest.raises(Invalid):
        waiting.check_marks(marks)


async def test_a_leader_that_only_keeps_its_lease_is_a_reason() -> None:
    seen = Seen(ToyCluster())
    now_ms = seen.cluster.now_ms
    seen.cluster.put(keys.CLOCK, ClockRow(FORMAT, now_ms, now_ms - 1_000))
    assert (await seen.status()).healthy
    seen.cluster.put(keys.CLOCK, ClockRow(FORMAT, now_ms, now_ms - status.PASS_MAX_MS - 1_000))
    assert "have not finished a pass for 61 s" in only(await seen.status())
    seen.cluster.put(keys.CLOCK, ClockRow(FORMAT, now_ms, now_ms, "3 steps failed"))
    assert only(await seen.status()) == "coordinator1 leads: 3 steps failed"
    seen.cluster.put(keys.CLOCK, ClockRow(FORMAT, now_ms - status.CLOCK_MAX_MS - 1_000, now_ms))
    assert "has not written its clock for 16 s" in only(await seen.status())


async def test_what_lags_behind_the_question_is_not_green() -> None:
    assert "has not caught up with etcd" in only(await Seen(ToyCluster()).status(current=False))


async def test_one_primary_node_is_not_green_and_one_of_anything_is_said() -> None:
    seen = Seen(ToyCluster(primary_nodes=1, copy_nodes=1))
    seen.cluster.put(keys.named(keys.NAMESPACE, "default"), NamespaceRow(FORMAT, 1, CLASS))
    reply = await seen.status()
    assert "no second primary node in pool 'primary'" in only(reply)
    assert any("copy pool 'copy' is on one node" in warning for warning in reply.warnings)


async def test_a_namespace_without_copies_and_a_cluster_in_one_zone_are_said_plainly() -> None:
    seen = Seen(ToyCluster())
    seen.cluster.put(keys.named(keys.CLASS, "bare"), ClassRow(FORMAT, 9, PRIMARY, [], "primary"))
    seen.cluster.put(keys.named(keys.NAMESPACE, "bare"), NamespaceRow(FORMAT, 1, 9))
    for node in range(1, 5):
        row = seen.cluster.view.nodes[f"node{node}"].row
        seen.cluster.put(keys.named(keys.NODE, f"node{node}"), replace(row, zone="here"))
    reply = await seen.status()
    assert reply.healthy, "policy is met"
    assert any("bare has no copy pool" in warning for warning in reply.warnings)
    assert any("in one zone (here)" in warning for warning in reply.warnings)


async def test_a_scrub_that_will_be_late_is_a_reason_before_proof_ends() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    seen.cluster.wait(int(1.6 * seen.cluster.policy.scrub_period_ms))
    await seen.facts()
    scrub = seen.index.scrub.progress(seen.cluster.policy, seen.cluster.now_ms)
    assert "the scrub will miss its deadline" in only(await seen.status(scrub=scrub))


def test_only_steps_that_are_still_tried_are_trouble() -> None:
    rests = {("pull", 7, 3, 1): (100.0, 6), ("verify", 8, 3, 1): (10.0, 9), ("drop", 9, 3, 1): (100.0, 5)}
    assert trouble(rests, "disk full", 120.0) == (
        "1 step failed 6 times or more in a row, such as 'pull 7 3 1': disk full"
    )
    assert trouble(rests, "disk full", 161.0) == ""
