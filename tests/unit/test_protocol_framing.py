"""Batch framing and versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypool.protocol import routes, versions
from copypool.protocol.api import BATCH_MAX_ENTRIES, SMALL_MAX_BYTES, BatchEntry
from copypool.protocol.digests import digest_of, format_digest, parse_digest
from copypool.protocol.errors import CallerError, Invalid, TooLarge
from copypool.protocol.framing import decode_batch, encode_entry


@given(st.lists(st.tuples(st.text(min_size=1, max_size=20), st.binary(max_size=200)), max_size=20))
def test_a_batch_is_read_back(files: list[tuple[str, bytes]]) -> None:
    body = b"".join(encode_entry(BatchEntry(path, len(data), b"12345678")) + data for path, data in files)
    assert [(entry.path, bytes(view)) for entry, view in decode_batch(body)] == files


def test_a_batch_cut_anywhere_is_refused_or_shorter() -> None:
    one = encode_entry(BatchEntry("a", 5, b"12345678")) + b"hello"
    body = one + one
    for cut in range(1, len(body)):
        if cut == len(one):
            continue
        with pytest.raises(Invalid):
            list(decode_batch(body[:cut]))


def test_limits_of_a_batch() -> None:
    with pytest.raises(TooLarge):
        list(decode_batch(encode_entry(BatchEntry("a", SMALL_MAX_BYTES + 1, b""))))
    with pytest.raises(TooLarge):
        list(decode_batch(encode_entry(BatchEntry("a", 0, b"")) * (BATCH_MAX_ENTRIES + 1)))
    with pytest.raises(TooLarge):
        list(decode_batch(encode_entry(BatchEntry("a", -1, b""))))


@given(st.binary(max_size=64))
def test_garbage_is_refused_with_our_error(body: bytes) -> None:
    try:
        list(decode_batch(body))
    except CallerError:
        return
    assert body == b"" or len(body) >= 4


def test_versions_rise_even_when_the_clock_steps_back() -> None:
    clock = versions.VersionClock()
    minted = [clock.mint(now) for now in (1000, 1000, 500, 2000, 1999)]
    assert minted == sorted(set(minted))
    clock.observe(versions.version_at(9_000_000))
    assert clock.mint(2001) > versions.version_at(9_000_000)


def test_plausible_versions() -> None:
    now = 10_000_000
    assert versions.plausible(versions.version_at(now), now)
    assert not versions.plausible(versions.version_at(now + versions.AHEAD_MAX_MS + 1), now)
    assert not versions.plausible(versions.version_at(now - versions.BEHIND_MAX_MS - 1), now)


def test_digest_text() -> None:
    digest = digest_of(b"x")
    assert parse_digest(format_digest(digest)) == digest
    for text in ["", "blake3:", "blake3:zz", digest.hex(), "sha256:" + digest.hex(), format_digest(digest) + "00"]:
        with pytest.raises(Invalid):
            parse_digest(text)


@given(st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable()))
def test_paths_and_metadata_survive_the_url(text: str) -> None:
    assert routes.decode_path(routes.encode_path(text)) == text
    assert routes.decode_metadata(routes.encode_metadata({text: text})) == {text: text}


@pytest.mark.parametrize("value", ["", "x", "[]", "%7B%22a%22:1%7D", "%ff"])
def test_bad_metadata_headers(value: str) -> None:
    with pytest.raises(Invalid):
        routes.decode_metadata(value)


def test_a_path_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(Invalid):
        routes.decode_path("a%ff")
