"""Stripes are put together as the format says, where writes past the page cache want them."""

from __future__ import annotations

import ctypes
import os

import pytest

from copypool.protocol import stripes
from copypool.protocol.digests import Hasher, digest_of
from copypool.protocol.errors import BrokenInvariant
from copypool_node.disk import DIRECT_ALIGN_BYTES
from copypool_node.format import GROUP_HEADER_MAX_BYTES, RECORD_HEADER_MAX_BYTES
from copypool_node.stripe_room import ROOMS_KEPT, StripeRoom, StripeRooms

EXTENT = 7


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.mark.parametrize("offset", [0, 1, 4096, 70_001, 5_000_000])
@pytest.mark.parametrize("size", [0, 1, stripes.BLOCK_BYTES, stripes.BLOCK_BYTES + 1, stripes.STRIPE_BYTES])
def test_a_stripe_is_prelude_and_payload_at_its_offset(offset: int, size: int) -> None:
    payload = os.urandom(size)
    chunks = [payload[at : at + 300_000] for at in range(0, size, 300_000)]
    hasher = Hasher()
    found = StripeRoom().assemble([], chunks, EXTENT, offset, hasher, last=True)
    assert bytes(found) == stripes.encode_prelude(payload, EXTENT, offset, last=True) + payload
    assert hasher.digest() == digest_of(payload)
    assert address(found) % DIRECT_ALIGN_BYTES == offset % DIRECT_ALIGN_BYTES


def test_heads_stand_in_front_and_the_longest_have_room() -> None:
    heads = [os.urandom(GROUP_HEADER_MAX_BYTES), os.urandom(RECORD_HEADER_MAX_BYTES)]
    payload = os.urandom(stripes.STRIPE_BYTES)
    offset = 4095 + sum(map(len, heads))  # the first byte stands at the end of a block
    found = StripeRoom().assemble(heads, [payload], EXTENT, offset, Hasher(), last=False)
    prelude = stripes.encode_prelude(payload, EXTENT, offset, last=False)
    assert bytes(found) == b"".join([*heads, prelude, payload])
    assert address(found) % DIRECT_ALIGN_BYTES == 4095


def test_a_room_is_used_again() -> None:
    room = StripeRoom()
    room.assemble([b"head"], [b"x" * 100_000], EXTENT, 5000, Hasher(), last=False)
    again = room.assemble([], [b"y" * 10], EXTENT, 12_345, Hasher(), last=True)
    assert bytes(again) == stripes.encode_prelude(b"y" * 10, EXTENT, 12_345, last=True) + b"y" * 10


def test_what_is_longer_than_a_stripe_has_no_room() -> None:
    with pytest.raises(BrokenInvariant, match="no room"):
        StripeRoom().assemble([], [bytes(stripes.STRIPE_BYTES), b"x"], EXTENT, 0, Hasher(), last=False)


def test_rooms_are_lent_to_one_at_a_time_and_few_are_kept() -> None:
    rooms = StripeRooms()
    lent = [rooms.take() for _ in range(ROOMS_KEPT + 2)]
    assert len(set(map(id, lent))) == len(lent)
    for room in lent:
        rooms.give_back(room)
    again = [rooms.take() for _ in range(ROOMS_KEPT + 1)]
    assert len({*map(id, again)} & {*map(id, lent)}) == ROOMS_KEPT
