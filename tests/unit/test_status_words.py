"""What `status` says of what keeps bytes waiting, in words that tell the next step."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from copypool.protocol.internal import HeartbeatRequest, Unmounted
from copypool_coordinator import exposure, keys
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.policy import places
from copypool_coordinator.rows import FORMAT, ClassRow, NamespaceRow, Share, VolumeRow
from kit.little_view import report
from kit.seen_status import Seen, only
from kit.toy_cluster import CLASS, MIB, PRIMARY, ToyCluster
from kit.toy_extent import E, whole_copied


async def test_a_primary_pool_that_is_down_to_one_node_is_green_but_not_without_a_word() -> None:
    """What was on the other is rebuilt, so all is where policy says; the next loss could not be rebuilt."""
    seen = Seen(ToyCluster(primary_nodes=2))
    seen.cluster.put(keys.named(keys.NAMESPACE, "default"), NamespaceRow(FORMAT, 1, CLASS))
    assert (await seen.status()).warnings == []
    seen.cluster.down(2)
    reply = await seen.status()
    assert reply.healthy
    assert reply.warnings == [
        "in pool 'primary' only node1 takes bytes now: until node2 does, what is lost with node1 could not be rebuilt"
    ]
    seen.cluster.set_access(4, "readonly")
    assert (await seen.status()).warnings[1:] == [
        "in pool 'copy' only node3 takes bytes now: until node4 does, new bytes have no copy there while node3 is away"
    ]
    seen.cluster.set_access(1, "readonly")
    assert (await seen.status()).warnings[0] == (
        "in pool 'primary' no node takes bytes now: nothing is written or rebuilt there until one does (node1, node2); "
        "see `copypool volumes`"
    )


async def test_a_node_s_own_words_say_why_its_volume_is_not_mounted() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    view, now_s = seen.cluster.view, seen.cluster.now_ms / 1000
    epoch = view.sessions[1].mod_revision
    row = view.volumes["volume1"].row
    seen.cluster.put(keys.named(keys.VOLUME, "volume1"), replace(row, session=epoch - 1))
    beats = Heartbeats()
    reply = await seen.status(heartbeats=beats)
    assert "volume1 not mounted, although their nodes run: see the nodes' logs" in reply.reasons
    beats.note(HeartbeatRequest(1, epoch, False, [], 0, [Unmounted("volume1", "its label says 'volume2'")]), now_s)
    reply = await seen.status(heartbeats=beats)
    assert "volume 'volume1' is not mounted, although its node runs: its label says 'volume2'" in reply.reasons
    assert not any("logs" in reason for reason in reply.reasons)


async def test_a_volume_that_was_taken_out_and_comes_back_is_not_silently_left_aside() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    beats, now_s = Heartbeats(), seen.cluster.now_ms / 1000
    epoch = seen.cluster.view.sessions[1].mod_revision
    beats.note(HeartbeatRequest(1, epoch, False, [], 0, [Unmounted("old", "it was taken out")]), now_s)
    reply = await seen.status(heartbeats=beats)
    assert reply.healthy, "nothing is missing with it"
    assert "node1 cannot mount 'old', so the cluster does not use it: it was taken out" in reply.warnings
    beats.note(HeartbeatRequest(1, epoch, False, []), now_s)
    assert (await seen.status(heartbeats=beats)).warnings == []


async def test_what_waits_for_a_volume_that_an_operator_made_unavailable_is_not_said_to_be_rebuilt() -> None:
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    seen.cluster.set_access(1, "unavailable")
    reply = await seen.status()
    first, second = reply.reasons
    assert first == "1 extents have no good primary location"
    assert second == (
        "volume 'volume1' is `unavailable` by an operator's word: 1 extents wait for it and are not made again "
        "elsewhere; `copypool volume update volume1 --access readwrite` gives it back, `copypool restore volume "
        "volume1` gives it up"
    )
    seen.cluster.down(1)
    (first, *_) = (await seen.status()).reasons
    assert "waiting for node1 for" in first, "its node is gone as well, and the grace time runs"


async def test_a_volume_that_was_only_defined_is_no_second_place() -> None:
    seen = Seen(ToyCluster(primary_nodes=1, copy_nodes=2))
    seen.cluster.put(keys.named(keys.NAMESPACE, "default"), NamespaceRow(FORMAT, 1, CLASS))
    seen.cluster.put(keys.named(keys.VOLUME, "later"), VolumeRow(FORMAT, 9, b"", PRIMARY, 2, 0, "readwrite"))
    reply = await seen.status()
    assert "no second primary node in pool 'primary'" in only(reply)
    assert not places(seen.cluster.view)[9].up, "nothing of it can be read: no node has mounted it"


async def test_a_full_pool_is_said_before_and_after_it_lacks_something() -> None:
    seen = Seen(ToyCluster())
    seen.cluster.put(keys.named(keys.NAMESPACE, "default"), NamespaceRow(FORMAT, 1, CLASS))
    now_s = seen.cluster.now_ms / 1000

    def beats(free: dict[int, int]) -> Heartbeats:
        heard = Heartbeats()
        for node, room in free.items():
            epoch = seen.cluster.view.sessions[node].mod_revision
            heard.note(HeartbeatRequest(node, epoch, False, [report(node, free=room)]), now_s)
        return heard

    roomy = {1: 40 * MIB, 2: 40 * MIB, 3: 40 * MIB}
    assert (await seen.status(heartbeats=beats(roomy))).warnings == [], "volume4 was not heard"
    assert (await seen.status(heartbeats=beats({**roomy, 3: 0, 4: 20 * MIB}))).warnings == [], "volume4 has room"
    tight = beats({**roomy, 3: 0, 4: 15 * MIB})
    reply = await seen.status(heartbeats=tight)
    words = "pool 'copy' is full (volume3, volume4): new bytes get no copy there; add a volume, or make room"
    assert (reply.healthy, reply.warnings) == (True, [words])
    seen.cluster.open_extent(E, writer=1, length=4 * MIB)
    reply = await seen.status(heartbeats=tight)
    assert words in reply.reasons
    assert words not in reply.warnings
    reply = await seen.status(heartbeats=beats({1: 0, 2: 0, 3: 40 * MIB}))
    assert any("'primary' is full" in each and "`no_space`" in each for each in reply.warnings)


async def test_bytes_whose_copy_is_on_a_node_that_is_away_are_not_said_to_have_had_none() -> None:
    seen = Seen(ToyCluster(copy_nodes=1))
    whole_copied(seen.cluster)
    seen.cluster.down(3)
    seen.cluster.perform_all(seen.cluster.plan())  # when it went is written down
    reply = await seen.status()
    (debt,) = [each for each in reply.reasons if "have no copy in pool 'copy' yet" in each]
    grace_s = seen.cluster.policy.grace_ms // 1000
    assert debt.endswith(f": copies on node3 do not count while it is away (waiting for node3 for {grace_s} s more)")
    seen.cluster.wait(seen.cluster.policy.grace_ms)
    reply = await seen.status()
    assert any(each.endswith("while it is away (not waited for any more)") for each in reply.reasons)


async def test_files_that_were_stored_before_copies_were_wanted_are_not_passed_over() -> None:
    """They are where the policy of their time wants them: green, and yet lost with one disk."""
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    bare, later = 9, ClassRow(FORMAT, 9, PRIMARY, [], "primary")
    seen.cluster.put(keys.named(keys.CLASS, "bare"), later)
    for extent, namespace in ((E, 5), (E + 1, 6)):
        row = replace(seen.cluster.row(E), class_id=bare, shares=[Share(namespace, MIB, 1, MIB)])
        seen.cluster.put_extent(extent, row)
    policy = NamespaceRow(FORMAT, 5, CLASS, past_classes=[bare], class_since_ms=seen.cluster.now_ms)
    seen.cluster.put(keys.named(keys.NAMESPACE, "mail"), policy)
    (warning,) = [each for each in (await seen.status()).warnings if "policy changed" in each]
    assert "namespace 'mail'" in warning
    assert "lack the copies that it wants now: `copypool namespace rewrite mail`" in warning

    seen.cluster.put_extent(E, replace(seen.cluster.row(E), class_id=CLASS))
    assert not [each for each in (await seen.status()).warnings if "policy changed" in each], "all is brought to it"
    seen.cluster.put_extent(E, replace(seen.cluster.row(E), class_id=bare))
    seen.cluster.put(keys.named(keys.NAMESPACE, "mail"), replace(policy, class_id=bare, past_classes=[CLASS, bare]))
    assert not [each for each in (await seen.status()).warnings if "policy changed" in each], "fewer copies are wanted"


async def test_one_answer_looks_at_so_many_older_extents_and_says_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exposure, "_LOOKED_AT_MAX", 3)
    seen = Seen(ToyCluster())
    whole_copied(seen.cluster)
    seen.cluster.put(keys.named(keys.CLASS, "bare"), ClassRow(FORMAT, 9, PRIMARY, [], "primary"))
    for extent in (E, E + 1):
        row = replace(seen.cluster.row(E), class_id=9, shares=[Share(7, MIB, 1, MIB)])
        seen.cluster.put_extent(extent, row)
    for number, name in ((5, "a"), (6, "b")):
        policy = NamespaceRow(FORMAT, number, CLASS, past_classes=[9], class_since_ms=seen.cluster.now_ms)
        seen.cluster.put(keys.named(keys.NAMESPACE, name), policy)
    (warning,) = [each for each in (await seen.status()).warnings if "policy changed" in each]
    assert "namespace 'b' that were stored before its policy changed may lack" in warning
