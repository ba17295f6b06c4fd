"""The scanner finds what was written, and every byte that was not."""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copypool.protocol import stripes
from copypool.protocol.digests import digest_of
from copypool.protocol.internal import Refusal
from copypool_node import format as layout
from copypool_node.format import Corrupt
from copypool_node.scanner import Event, GroupSeen, RecordSeen, Scanner, SealSeen
from kit.extent_images import EPOCH, Image, ImageBuilder, header_of, image_of, record_of

EXTENT = 0x1234_5678_9ABC
SIZES = [0, 1, stripes.BLOCK_BYTES - 1, stripes.BLOCK_BYTES, stripes.BLOCK_BYTES + 1]
STRIPE_SIZES = [stripes.STRIPE_BYTES - 1, stripes.STRIPE_BYTES, stripes.STRIPE_BYTES + 1, 2 * stripes.STRIPE_BYTES + 7]


def scan(data: bytes, chunk: int = 1 << 30, extent: int = EXTENT) -> tuple[Scanner, list[Event]]:
    scanner = Scanner(extent)
    events: list[Event] = []
    for at in range(0, len(data), chunk):
        events += scanner.feed(memoryview(data)[at : at + chunk])
    return scanner, events


def check_whole(image: Image, scanner: Scanner, events: list[Event]) -> None:
    seen = [event for event in events if isinstance(event, RecordSeen)]
    assert scanner.verified_length == len(image.data)
    assert scanner.digest() == digest_of(image.data)
    assert scanner.records == len(image.records) == len(seen)
    for event, (header, payload, offset) in zip(seen, image.records, strict=True):
        assert event.header == header
        assert (event.segment.extent, event.segment.offset, event.segment.length) == (EXTENT, offset, len(payload))
        assert (event.length, event.digest) == (len(payload), digest_of(payload))
        read = b"".join(
            image.data[part.data_offset : part.data_offset + part.data_bytes][part.skip_bytes :][: part.take_bytes]
            for part in stripes.split_range(event.segment.offset, event.length, 0, event.length)
        )
        assert read == payload


def small_image() -> Image:
    return image_of(EXTENT, [[b"", b"x" * 70], [], [bytes(range(256))]])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.data_too_large])
@given(st.lists(st.lists(st.sampled_from(SIZES), max_size=4), max_size=4), st.integers(1, 100_000), st.randoms())
def test_records_of_all_sizes_are_found_whatever_the_chunks(groups: list[list[int]], chunk: int, random) -> None:  # type: ignore[no-untyped-def]
    image = image_of(EXTENT, [[random.randbytes(size) for size in sizes] for sizes in groups])
    scanner, events = scan(image.data, chunk)
    check_whole(image, scanner, events)
    noted = [event.header.refusals for event in events if isinstance(event, GroupSeen)]
    assert noted == [(Refusal(index - 1, 0),) if index else () for index in range(len(groups))]


@pytest.mark.parametrize("size", STRIPE_SIZES)
@pytest.mark.parametrize("chunk", [64 * 1024 - 1, 1 << 20, 1 << 30])
def test_records_of_several_stripes(size: int, chunk: int) -> None:
    image = image_of(EXTENT, [[os.urandom(size), b"after"]])
    check_whole(image, *scan(image.data, chunk))


def test_unicode_paths() -> None:
    builder = ImageBuilder(EXTENT)
    builder.group(0)
    for path in ("ä/ß/日本", "e\u0301", "\u202e", "a b\t"):
        builder.record(record_of(1, path=path), path.encode())
    image = builder.build()
    check_whole(image, *scan(image.data, 100))


def test_every_flipped_byte_is_found() -> None:
    """No claim reaches beyond the structure that holds the byte, and no record that holds it is told."""
    image = small_image()
    for at, mask in product(range(len(image.data)), (0x01, 0x80, 0xFF)):
        damaged = bytearray(image.data)
        damaged[at] ^= mask
        scanner = Scanner(EXTENT)
        try:
            events = scanner.feed(damaged)
        except Corrupt as exc:
            events = list(exc.events)  # type: ignore[arg-type]
        whole = image.boundaries[bisect_right(image.boundaries, at) - 1]
        assert scanner.verified_length == whole, f"byte {at}"
        told = sum(isinstance(event, RecordSeen) for event in events)
        assert told == scanner.records <= len(image.records)


def test_every_torn_tail_ends_at_the_last_boundary() -> None:
    image = small_image()
    for cut in range(len(image.data) + 1):
        scanner, _events = scan(image.data[:cut])
        assert scanner.verified_length == image.boundaries[bisect_right(image.boundaries, cut) - 1], f"cut at {cut}"
        assert scanner.pending_bytes == cut - scanner.verified_length
        assert scanner.digest() == digest_of(image.data[: scanner.verified_length])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_tail_of_zeros_or_noise_is_not_claimed(data: st.DataObject) -> None:
    image = small_image()
    cut = data.draw(st.integers(4096, len(image.data) - 1))
    tail = data.draw(st.one_of(st.just(bytes(8192)), st.binary(min_size=600, max_size=2000)))
    scanner = Scanner(EXTENT)
    with pytest.raises(Corrupt):
        scanner.feed(image.data[:cut] + tail + bytes(layout.GROUP_HEADER_MAX_BYTES))
    assert scanner.verified_length <= image.boundaries[bisect_right(image.boundaries, cut) - 1] + len(tail)
    assert image.data.startswith((image.data[:cut] + tail)[: scanner.verified_length])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_after_damage_it_goes_on_from_another_source(data: st.DataObject) -> None:
    """What a pull does: feed again from `verified_length` until the end; the result is that of a clean scan."""
    image = image_of(EXTENT, [[b"a" * 200_000, b"b" * 10], [b"c" * 70_000]])
    scanner = Scanner(EXTENT)
    events: list[Event] = []
    for _round in range(4):
        bad = data.draw(st.integers(scanner.verified_length, len(image.data) - 1))
        chunk = data.draw(st.integers(1000, 300_000))
        source = bytearray(image.data)
        source[bad] ^= 0x40
        scanner.forget_pending()
        before = scanner.verified_length
        try:
            for at in range(before, len(source), chunk):
                events += scanner.feed(source[at : at + chunk])
        except Corrupt as exc:
            events += exc.events  # type: ignore[arg-type]
        assert scanner.verified_length <= bad
        if scanner.verified_length == len(image.data):
            break
    scanner.forget_pending()
    events += scanner.feed(memoryview(image.data)[scanner.verified_length :])
    check_whole(image, scanner, events)


def test_misplaced_blocks_are_found() -> None:
    """Blocks swapped within a file, and blocks of another extent at the same offset, have good checksums elsewhere."""
    payload = os.urandom(3 * stripes.BLOCK_BYTES)
    image = image_of(EXTENT, [[payload]])
    start = image.records[0][2] + stripes.prelude_bytes(len(payload))
    first, second = slice(start, start + stripes.BLOCK_BYTES), slice(start + stripes.BLOCK_BYTES, start + 131072)
    swapped = bytearray(image.data)
    swapped[first], swapped[second] = image.data[second], image.data[first]
    with pytest.raises(Corrupt, match="block 0") as found:
        Scanner(EXTENT).feed(swapped)
    assert found.value.offset == start

    other = image_of(EXTENT + 1, [[payload]])
    mixed = bytearray(image.data)
    whole = slice(image.records[0][2], image.boundaries[-2])  # the stripe with its table
    mixed[whole] = other.data[whole]
    with pytest.raises(Corrupt, match="table"):
        Scanner(EXTENT).feed(mixed)
    with pytest.raises(Corrupt, match="in the place of"):
        Scanner(EXTENT).feed(other.data)


def test_a_whole_group_at_another_place_is_found() -> None:
    image = image_of(EXTENT, [[b"one"], [b"two"]])
    group = image.data[4096:]
    with pytest.raises(Corrupt) as found:
        Scanner(EXTENT).feed(image.data + group)
    assert found.value.offset == len(image.data)


def structures(*parts: str) -> bytes:
    """An extent with these structures behind its header, each of them valid where it stands."""
    data = bytearray(layout.encode_extent_header(header_of(EXTENT)))
    for part in parts:
        kind, _, value = part.partition(":")
        at = len(data)
        if kind == "group":
            group, _, noted = value.partition("/")
            data += layout.encode_group_header(EXTENT, at, int(group), EPOCH, [Refusal(int(noted), 0)] if noted else [])
        elif kind == "epoch":
            data += layout.encode_group_header(EXTENT, at, 0, EPOCH + int(value), [])
        elif kind == "record":
            data += layout.encode_record_header(EXTENT, at, record_of(1))
        elif kind in ("stripe", "last"):
            payload = b"p" * int(value)
            data += stripes.encode_prelude(payload, EXTENT, at, last=kind == "last") + payload
        elif kind == "footer":
            data += layout.encode_record_footer(EXTENT, at, int(value), digest_of(b"p" * int(value)))
        elif kind == "liar":
            data += layout.encode_record_footer(EXTENT, at, int(value), digest_of(b"another"))
        else:
            data += layout.encode_seal_footer(EXTENT, at + int(value), 0, [], offset=at)
    return bytes(data)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        (["record"], "RECD"),
        (["group:0", "footer:0"], "RFTR"),
        (["group:0", "last:5"], "STRP"),
        (["group:0", "record", "group:1"], "GRUP"),
        (["group:0", "record", "stripe:5"], "not its record's last"),
        (["group:0", "record", "last:5", "last:5"], "STRP"),
        (["group:0", "record", "last:5", "footer:6"], "behind 5"),
        (["group:0", "record", "last:5", "liar:5"], "digest"),
        (["group:0", "record", f"stripe:{stripes.STRIPE_BYTES}", f"footer:{stripes.STRIPE_BYTES}"], "RFTR"),
        (["group:1", "group:1"], "behind group 1"),
        (["group:1", "group:0"], "behind group 1"),
        (["group:1/1"], "not before"),
        (["epoch:1"], "epoch"),
        (["group:0", "seal:0", "group:1"], "GRUP"),
        (["group:0", "seal:-40"], "sealed at 4096"),
        (["group:1", "seal:0"], "after group 0"),
    ],
)
def test_valid_structures_in_the_wrong_order_are_found(parts: list[str], what: str) -> None:
    scanner = Scanner(EXTENT)
    with pytest.raises(Corrupt, match=what):
        scanner.feed(structures(*parts))


def test_the_seal_footer_is_told_and_is_not_claimed() -> None:
    image = small_image()
    end = len(image.data)
    first = layout.encode_seal_footer(EXTENT, end, 2, [Refusal(2, 0)])
    second = layout.encode_seal_footer(EXTENT, end, 2, [Refusal(2, 0)], digest_of(image.data), offset=end + len(first))
    for chunk in (1, 17, 1 << 20):
        scanner, events = scan(image.data + first + second, chunk)
        assert scanner.verified_length == end
        assert scanner.digest() == digest_of(image.data)
        assert [event.footer.digest for event in events if isinstance(event, SealSeen)] == [
            layout.NO_DIGEST,
            digest_of(image.data),
        ]
        assert scanner.seal is not None
        assert scanner.seal.digest == digest_of(image.data)
    liar = layout.encode_seal_footer(EXTENT, end, 2, [], b"l" * 32)
    with pytest.raises(Corrupt, match="digest"):
        scan(image.data + liar)


def test_payload_cannot_imitate_structure() -> None:
    """A body that holds valid structures for just the place where they will stand is still only a body."""
    builder = ImageBuilder(EXTENT)
    builder.group(0)
    at = builder.length + len(layout.encode_record_header(EXTENT, builder.length, record_of(1)))
    place = at + stripes.prelude_bytes(1000)
    forged = layout.encode_seal_footer(EXTENT, place, 0, []).ljust(1000, b"f")
    builder.record(record_of(1), forged)
    image = builder.build()
    scanner, events = scan(image.data, 97)
    check_whole(image, scanner, events)
    assert scanner.seal is None


def test_it_buffers_at_most_one_structure() -> None:
    image = image_of(EXTENT, [[os.urandom(2 * stripes.STRIPE_BYTES)]])
    scanner = Scanner(EXTENT)
    for at in range(0, len(image.data), 10_000):
        scanner.feed(image.data[at : at + 10_000])
        assert scanner.pending_bytes < stripes.FULL_STRIDE_BYTES
    assert scanner.pending_bytes == 0
