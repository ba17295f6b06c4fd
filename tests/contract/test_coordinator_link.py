"""What a node's calls to coordinators do when the node ends."""

from __future__ import annotations

import asyncio

import pytest

from copypool.protocol.errors import Unavailable
from copypool.protocol.internal import Done, HeartbeatRequest
from copypool_node.link import CoordinatorLink
from kit.etcd_process import free_ports
from kit.eventually import eventually

REQUEST = HeartbeatRequest(1, 1, False, [])


async def test_a_call_under_way_ends_with_its_node_and_opens_no_connection_again() -> None:
    """A connection pool that is opened behind the end is nobody's to close."""
    link = CoordinatorLink([f"http://127.0.0.1:{free_ports(1)[0]}"])
    call = asyncio.create_task(link.call("heartbeat", REQUEST, Done, deadline_s=60.0))
    await eventually(lambda: link._session is not None, "a connection is tried")
    await link.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(call, 60)
    with pytest.raises(Unavailable, match="ending"):
        await link.ask("http://127.0.0.1:1", "heartbeat", REQUEST, Done)
    assert link._session is None
