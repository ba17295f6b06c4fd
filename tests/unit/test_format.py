"""The bytes of an extent file: what is encoded is decoded, and nothing that was changed or misplaced is."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypool.protocol.internal import EXTENT_HEADER_BYTES, ExtentClass, RecordKind, Refusal
from copypool_node import format as layout
from copypool_node.format import NO_DIGEST, Corrupt, ExtentHeader, RecordHeader, SealFooter
from kit.extent_images import EPOCH, header_of, record_of

extents = st.integers(0, 2**40)
offsets = st.integers(EXTENT_HEADER_BYTES, 2**40)
refusals = st.lists(st.builds(Refusal, st.integers(0, 2**62), st.integers(0, 2**32 - 1)), max_size=20)
digests = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
records = st.builds(
    RecordHeader,
    kind=st.sampled_from(get_args(RecordKind)),
    namespace=st.integers(0, 2**32),
    path=texts,
    version=st.integers(0, 2**63 - 1),
    write_id=st.binary(min_size=8, max_size=8),
    metadata=st.dictionaries(texts, texts, max_size=5),
    upload=st.sampled_from([b"", bytes(16)]),
    part=st.integers(0, 100_000),
    stored_ms=st.integers(0, 2**48),
)


@given(extents, st.binary(min_size=16, max_size=16), st.lists(texts, max_size=8), st.integers(0, 2**63))
def test_an_extent_header_survives(extent: int, cluster: bytes, copy_pools: list[str], epoch: int) -> None:
    header = ExtentHeader(cluster, extent, ExtentClass(3, "primary", copy_pools, "copy"), epoch, 1_700_000_000_000)
    data = layout.encode_extent_header(header)
    assert len(data) == EXTENT_HEADER_BYTES
    assert layout.decode_extent_header(data) == header


@given(extents, offsets, st.integers(0, 2**62), refusals)
def test_a_group_header_survives(extent: int, offset: int, group: int, noted: list[Refusal]) -> None:
    data = layout.encode_group_header(extent, offset, group, EPOCH, noted)
    assert layout.sized_bytes(data) == len(data)
    header = layout.decode_group_header(data, extent, offset)
    assert (header.group, header.epoch, header.base_bytes) == (group, EPOCH, offset)
    assert list(header.refusals) == noted


@given(extents, offsets, records)
def test_a_record_header_survives(extent: int, offset: int, header: RecordHeader) -> None:
    data = layout.encode_record_header(extent, offset, header)
    assert layout.sized_bytes(data) == len(data)
    assert layout.decode_record_header(data, extent, offset) == header


@given(extents, offsets, st.integers(0, 2**62), digests)
def test_a_record_footer_survives(extent: int, offset: int, length: int, digest: bytes) -> None:
    data = layout.encode_record_footer(extent, offset, length, digest)
    assert len(data) == layout.RECORD_FOOTER_BYTES
    footer = layout.decode_record_footer(data, extent, offset)
    assert (footer.length, footer.digest) == (length, digest)


@given(extents, offsets, st.integers(-1, 2**62), refusals, digests, st.integers(0, 1000))
def test_a_seal_footer_survives(
    extent: int, length: int, group: int, noted: list[Refusal], digest: bytes, behind: int
) -> None:
    data = layout.encode_seal_footer(extent, length, group, noted, digest, offset=length + behind)
    expected = SealFooter(length, group, tuple(noted), digest)
    assert layout.decode_seal_footer(data, extent, length + behind) == expected
    assert layout.find_seal_footer(b"x" * 100 + data, extent, length + behind - 100) == expected


def test_no_structure_passes_at_another_offset_or_in_another_extent() -> None:
    for data, decode in (
        (layout.encode_group_header(7, 5000, 1, EPOCH, []), layout.decode_group_header),
        (layout.encode_record_header(7, 5000, record_of(1)), layout.decode_record_header),
        (layout.encode_record_footer(7, 5000, 3, NO_DIGEST), layout.decode_record_footer),
        (layout.encode_seal_footer(7, 5000, 3, []), layout.decode_seal_footer),
    ):
        decode(data, 7, 5000)
        for extent, offset in ((7, 5001), (8, 5000)):
            with pytest.raises(Corrupt, match="checksum"):
                decode(data, extent, offset)


@given(st.binary(max_size=200))
def test_no_decoder_takes_noise_or_fails_otherwise(noise: bytes) -> None:
    for decode in (layout.decode_group_header, layout.decode_record_header, layout.decode_record_footer):
        with pytest.raises(Corrupt):
            decode(noise, 7, 5000)
    with pytest.raises(Corrupt):
        layout.decode_extent_header(noise)
    assert layout.find_seal_footer(noise, 7, 5000) is None


@given(st.binary(min_size=EXTENT_HEADER_BYTES - 12, max_size=EXTENT_HEADER_BYTES - 12))
def test_noise_behind_an_extent_magic_is_corrupt(noise: bytes) -> None:
    with pytest.raises(Corrupt):
        layout.decode_extent_header(layout.encode_extent_header(header_of(7))[:12] + noise)


def test_a_newer_format_is_named_not_guessed() -> None:
    data = bytearray(layout.encode_extent_header(header_of(7)))
    data[4] = 2
    with pytest.raises(Corrupt, match="format 2"):
        layout.decode_extent_header(data)


def test_what_does_not_fit_is_refused_when_it_is_encoded() -> None:
    with pytest.raises(ValueError, match="copy pools"):
        layout.encode_extent_header(ExtentHeader(b"", 1, ExtentClass(1, "p", ["c" * 63] * 64, "primary"), 1, 1))
    with pytest.raises(ValueError, match="record header"):
        layout.encode_record_header(1, 4096, record_of(1, path="x" * layout.RECORD_HEADER_MAX_BYTES))
    with pytest.raises(ValueError, match="refusals"):
        layout.encode_group_header(1, 4096, 1, 1, [Refusal(0, 0)] * (layout.REFUSALS_MAX + 1))
    with pytest.raises(ValueError, match="digest"):
        layout.encode_record_footer(1, 4096, 1, b"short")


def test_a_torn_second_seal_footer_leaves_the_first() -> None:
    first = layout.encode_seal_footer(7, 5000, 3, [Refusal(3, 1)])
    second = layout.encode_seal_footer(7, 5000, 3, [Refusal(3, 1)], b"d" * 32, offset=5000 + len(first))
    for cut in range(len(second)):
        footer = layout.find_seal_footer(first + second[:cut], 7, 5000)
        assert footer is not None
        assert footer.digest == NO_DIGEST
    footer = layout.find_seal_footer(first + second, 7, 5000)
    assert footer is not None
    assert footer.digest == b"d" * 32
