"""Stripe arithmetic: every payload byte has one place, and a block read from a wrong place does not pass."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copypool.protocol import stripes
from copypool.protocol.stripes import BLOCK_BYTES, FULL_STRIDE_BYTES, STRIPE_BYTES

EDGES = [
    1,
    BLOCK_BYTES - 1,
    BLOCK_BYTES,
    BLOCK_BYTES + 1,
    STRIPE_BYTES - 1,
    STRIPE_BYTES,
    STRIPE_BYTES + 1,
    2 * STRIPE_BYTES,
    2 * STRIPE_BYTES + BLOCK_BYTES + 7,
]


def store(payload: bytes, extent: int, offset: int) -> bytes:
    """A payload as it stands on disk from `offset` on."""
    pieces = []
    for start in range(0, len(payload), STRIPE_BYTES):
        stripe = payload[start : start + STRIPE_BYTES]
        last = start + STRIPE_BYTES >= len(payload)
        place = offset + sum(map(len, pieces))
        pieces += [stripes.encode_prelude(stripe, extent, place, last=last), stripe]
    return b"".join(pieces)


@pytest.fixture(scope="module")
def payload() -> bytes:
    return random.Random(1).randbytes(max(EDGES))


@pytest.mark.parametrize("size", EDGES)
def test_stored_size_is_arithmetic(payload: bytes, size: int) -> None:
    assert len(store(payload[:size], 3, 4096)) == stripes.stored_bytes(size)
    assert stripes.stored_bytes(0) == 0


@settings(max_examples=60, deadline=None)
@given(size=st.sampled_from(EDGES), data=st.data())
def test_a_range_is_read_back_from_its_parts(payload: bytes, size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    base = 5000
    disk = bytes(base) + store(payload[:size], 9, base)
    out = []
    for part in stripes.split_range(base, size, start, stop):
        head = disk[part.prelude_offset : part.prelude_offset + part.prelude_bytes]
        prelude = stripes.decode_prelude(head, 9, part.prelude_offset)
        assert prelude is not None
        blocks = disk[part.data_offset : part.data_offset + part.data_bytes]
        assert stripes.first_bad_block(blocks, prelude, 9, part) is None
        out.append(blocks[part.skip_bytes : part.skip_bytes + part.take_bytes])
        assert prelude.last == (part.prelude_offset + FULL_STRIDE_BYTES >= base + stripes.stored_bytes(size))
    assert b"".join(out) == payload[start:stop]


def test_any_flipped_byte_of_prelude_or_block_is_found(payload: bytes) -> None:
    body = payload[: BLOCK_BYTES + 10]
    good = store(body, 1, 64)
    (part,) = stripes.split_range(64, len(body), 0, len(body))
    for at in [*range(part.prelude_bytes), part.prelude_bytes, BLOCK_BYTES, len(good) - 1]:
        bad = bytearray(good)
        bad[at] ^= 0x10
        prelude = stripes.decode_prelude(bad[: part.prelude_bytes], 1, 64)
        if at < part.prelude_bytes:
            assert prelude is None
        else:
            assert prelude is not None
            assert stripes.first_bad_block(bad[part.prelude_bytes :], prelude, 1, part) is not None


@pytest.mark.parametrize(("extent", "offset"), [(2, 64), (1, 65), (1, 64 + FULL_STRIDE_BYTES)])
def test_the_right_bytes_in_the_wrong_place_do_not_pass(payload: bytes, extent: int, offset: int) -> None:
    prelude = stripes.encode_prelude(payload[:100], 1, 64, last=True)
    assert stripes.decode_prelude(prelude, 1, 64) is not None
    assert stripes.decode_prelude(prelude, extent, offset) is None


def test_garbage_is_no_prelude() -> None:
    assert stripes.decode_prelude(b"", 1, 0) is None
    assert stripes.decode_prelude(bytes(16), 1, 0) is None
    assert stripes.decode_prelude(b"STRP" + b"\xff" * 60, 1, 0) is None


@given(
    payload=st.binary(max_size=40) | st.integers(BLOCK_BYTES - 1, BLOCK_BYTES + 1).map(bytes),
    place=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    cut=st.sampled_from([None, None, -1, 3, 15, 16, 20]),
    flip=st.none() | st.integers(0, 1 << 20),
)
def test_a_sole_block_passes_exactly_where_its_prelude_and_block_do(
    payload: bytes, place: tuple[int, int], cut: int | None, flip: int | None
) -> None:
    stored = bytearray(stripes.encode_prelude(payload, 1, 1, last=True) + payload)[:cut]
    if flip is not None and stored:
        stored[flip // 8 % len(stored)] ^= 1 << flip % 8
    good = 0 < len(payload) <= BLOCK_BYTES and place == (1, 1) and cut is None and flip is None
    assert stripes.sole_block(bytes(stored), *place) == (payload if good else None)
