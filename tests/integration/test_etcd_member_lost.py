"""The runbook `etcd-member-lost`, step 3, on real members: the lost one is removed, added again and starts empty."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from contextlib import suppress
from typing import Any

import pytest

from kit.etcd_process import EtcdCluster, Member

CALL_TIMEOUT_S = 20.0
#: etcd refuses changes of its members until the others have been in touch for five seconds.
SETTLED_TIMEOUT_S = 60.0
POLL_S = 0.2


async def call(member: Member, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One call of etcd's JSON gateway: what `etcdctl` does."""

    def post() -> dict[str, Any]:
        request = urllib.request.Request(f"http://{member.endpoint}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as reply:
            found: dict[str, Any] = json.load(reply)
            return found

    return await asyncio.to_thread(post)


async def members_of(asked: Member) -> dict[str, str]:
    """Ids of the members by peer URL."""
    members = (await call(asked, "cluster/member/list", {}))["members"]
    return {each["peerURLs"][0]: each["ID"] for each in members}


async def change_members(asked: Member, lost: Member, *, listed: bool) -> None:
    """Add or remove a member, again while etcd refuses, until the list says so."""
    async with asyncio.timeout(SETTLED_TIMEOUT_S):
        while True:
            with suppress(OSError):
                members = await members_of(asked)
                if (lost.peer_url in members) == listed:
                    return
                if listed:
                    await call(asked, "cluster/member/add", {"peerURLs": [lost.peer_url]})
                else:
                    await call(asked, "cluster/member/remove", {"ID": members[lost.peer_url]})
            await asyncio.sleep(POLL_S)


async def replace_disk(cluster: EtcdCluster) -> Member:
    """The last member, killed, without its data, removed and added again by the first one; it does not run yet."""
    asked, lost = cluster.members[0], cluster.members[-1]
    await call(asked, "kv/put", {"key": "a2V5", "value": "dmFsdWU="})
    await lost.kill()
    await lost.wipe()
    await change_members(asked, lost, listed=False)
    await change_members(asked, lost, listed=True)
    return lost


async def test_a_member_without_its_disk_comes_back_with_the_state_existing() -> None:
    async with EtcdCluster(members=3) as cluster:
        lost = await replace_disk(cluster)
        await lost.launch("existing")
        await lost.ready()
        assert set(await members_of(lost)) == {member.peer_url for member in cluster.members}
        found = await call(lost, "kv/range", {"key": "a2V5"})
        assert [each["value"] for each in found["kvs"]] == ["dmFsdWU="]


async def test_it_does_not_come_back_with_the_state_new() -> None:
    """Why the page sets `etcd.initialClusterState` before anything else."""
    async with EtcdCluster(members=3) as cluster:
        lost = await replace_disk(cluster)
        await lost.launch("new")
        with pytest.raises(RuntimeError, match="ended at its start"):
            await lost.ready()
