"""What a file made of parts says of itself, with a writer that a test answers for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from copypool import uploading
from copypool.bodies import open_body
from copypool.protocol.api import PART_BYTES, AckRule, CompleteRequest, Receipt, SegmentRef
from copypool.protocol.errors import BrokenInvariant
from copypool.uploading import PART_TRIES, PARTS_IN_FLIGHT, upload

SIZE = PART_BYTES + 5


class Answers:
    """A writer whose parts have these ack rules; `None`: an earlier attempt had stored that part."""

    def __init__(self, acks: list[AckRule | None]) -> None:
        self._acks = acks
        self.completed: CompleteRequest | None = None

    async def put_part(
        self, namespace: str, path: str, upload: str, number: int, data: bytes, digest: bytes, *, deadline_s: float
    ) -> Receipt:
        ack = self._acks.pop(0)
        segment = None if ack is None else SegmentRef(1, 4096 + number, len(data))
        return Receipt(namespace, path, 7, len(data), "", segment, [], ack or "primary", replayed=ack is None)

    async def complete(self, namespace: str, path: str, request: CompleteRequest, *, deadline_s: float) -> Receipt:
        self.completed = request
        return Receipt(namespace, path, 9, request.size, "", SegmentRef(1, 0, 0), ["v1", "v2"], "copy")


async def stored(acks: list[AckRule | None]) -> tuple[Receipt, Answers]:
    answers: Any = Answers(acks)
    receipt = await upload(
        answers,
        "ns",
        "path",
        bytes(SIZE),
        if_absent=False,
        metadata={},
        digest=None,
        deadline_s=1.0,
        progress=None,
    )
    return receipt, answers


@pytest.mark.parametrize("acks", [["copy", "copy"], ["copy", "primary"], ["primary", "copy"]])
async def test_a_file_met_the_ack_rule_that_all_of_its_parts_met(acks: list[AckRule | None]) -> None:
    wanted = "copy" if set(acks) == {"copy"} else "primary"
    receipt, _ = await stored(list(acks))
    assert receipt.ack == wanted


async def test_a_part_that_a_lost_attempt_had_stored_is_stored_once_more() -> None:
    receipt, answers = await stored([None, "copy", "copy"])
    assert answers.completed is not None
    assert [part.segment.length for part in answers.completed.parts] == [PART_BYTES, 5]
    assert receipt.size == SIZE


async def test_parts_that_never_say_where_they_are_end_the_upload() -> None:
    with pytest.raises(BrokenInvariant):
        await stored([None] * (2 * PART_TRIES))


class Keeper:
    """A writer that keeps what it is given, part by part, each a while after it came."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.memory: dict[int, object] = {}  #: by id, held: an id is not given twice

    async def put_part(
        self, namespace: str, path: str, upload: str, number: int, data: memoryview, digest: bytes, *, deadline_s: float
    ) -> Receipt:
        for _ in range(number % 3):
            await asyncio.sleep(0)
        self.parts[number] = bytes(data)
        if isinstance(data, memoryview):
            self.memory[id(data.obj)] = data.obj
        return Receipt(namespace, path, 7, len(data), "", SegmentRef(1, 4096 + number, len(data)), [], "primary")

    async def complete(self, namespace: str, path: str, request: CompleteRequest, *, deadline_s: float) -> Receipt:
        return Receipt(namespace, path, 9, request.size, "", SegmentRef(1, 0, 0), ["v1"], "primary")


async def test_a_local_file_goes_out_whole_through_memory_that_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part_bytes = 4096
    monkeypatch.setattr(uploading, "PART_BYTES", part_bytes)
    content = os.urandom(30 * part_bytes + 17)
    (tmp_path / "file").write_bytes(content)
    keeper: Any = Keeper()
    await upload(
        keeper,
        "ns",
        "path",
        tmp_path / "file",
        if_absent=False,
        metadata={},
        digest=None,
        deadline_s=1.0,
        progress=None,
    )
    assert b"".join(keeper.parts[number] for number in range(31)) == content
    assert 0 < len(keeper.memory) <= PARTS_IN_FLIGHT + 2


async def test_memory_that_is_still_needed_is_not_read_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"aabbcc")
    body = open_body(tmp_path / "file")
    first = await body.read(2)
    second = await body.read(2)
    assert (bytes(first), bytes(second)) == (b"aa", b"bb")
    body.done_with(first)
    third = await body.read(2)
    assert (bytes(second), bytes(third)) == (b"bb", b"cc")
    assert await body.read(2) == b""
    await body.close()


async def test_a_pipe_is_read_by_its_path(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    body = open_body(tmp_path / "pipe")
    reading = asyncio.create_task(body.read(5))
    await asyncio.to_thread((tmp_path / "pipe").write_bytes, b"seven77")
    assert await reading == b"seven"
    assert await body.read(5) == b"77"
    await body.close()
