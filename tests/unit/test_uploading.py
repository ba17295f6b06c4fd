"""What a file made of parts says of itself, with a writer that a test answers for."""

from __future__ import annotations

from typing import Any

import pytest

from copypool.protocol.api import PART_BYTES, AckRule, CompleteRequest, Receipt, SegmentRef
from copypool.protocol.errors import BrokenInvariant
from copypool.uploading import PART_TRIES, upload

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
