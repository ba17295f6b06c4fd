"""What a node promises to clients that write: real node code, real files, a fake coordinator."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from copypool.protocol.digests import digest_of, format_digest
from kit.fake_coordinator import FakeCoordinator, running
from kit.node_process import NodeUnderTest, running_node


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with running() as fake:
        yield fake


@pytest.fixture
async def node(tmp_path: Path, coordinator: FakeCoordinator) -> AsyncIterator[NodeUnderTest]:
    async with running_node(tmp_path, coordinator) as under_test:
        yield under_test


async def test_a_small_body_is_committed_before_its_receipt_and_reads_back(node: NodeUnderTest) -> None:
    body = os.urandom(4096)
    receipt = await node.put("a/b.txt", body)
    row = node.coordinator.files[1, "a/b.txt"]
    assert (row.version, row.size, row.digest) == (receipt.version, 4096, digest_of(body))
    assert receipt.digest == format_digest(digest_of(body))
    assert receipt.volumes == ["n1-a"]
    assert receipt.segment is not None
    status, content, _ = await node.get(receipt.segment, receipt.version)
    assert (status, content) == (200, body)
