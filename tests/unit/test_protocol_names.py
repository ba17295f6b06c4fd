"""Bad names are refused at the edge with a code and a sentence; good ones are never changed (DOMAIN 5, last trap)."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypool.protocol.errors import CallerError, Invalid, TooLarge
from copypool.protocol.names import check_metadata, check_name, check_path, check_prefix, in_scope


@pytest.mark.parametrize(
    "path",
    ["", "/", "a/", "/a", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b", "\0", "\ud800", "x/\udfff"],
)
def test_malformed_paths_are_refused(path: str) -> None:
    with pytest.raises(Invalid):
        check_path(path)


@pytest.mark.parametrize(
    "path", ["a", "a/b", "...", ".a", "a..b", "..a/b.", " ", "é", "日本/語", "a\nb", "%2e%2e", "\\", "*"]
)
def test_unusual_paths_are_files_like_any_other(path: str) -> None:
    assert check_path(path) == path


def test_length_is_counted_in_bytes() -> None:
    assert check_path("é" * 512)
    with pytest.raises(TooLarge):
        check_path("é" * 512 + "a")
    with pytest.raises(TooLarge):
        check_path("a" * 1025)


def test_look_alikes_stay_two_files() -> None:
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    assert check_path(composed) != check_path(decomposed)


@given(st.text(max_size=40))
def test_a_path_is_returned_unchanged_or_refused_by_the_caller_branch(path: str) -> None:
    try:
        accepted = check_path(path)
    except CallerError:
        return
    assert accepted is path
    parts = path.split("/")
    assert all(part not in ("", ".", "..") for part in parts)
    assert "\0" not in path


@pytest.mark.parametrize(
    ("path", "prefix", "inside"),
    [
        ("team/a", "team/a", True),
        ("team/a/x", "team/a", True),
        ("team/a/x", "team/a/", True),
        ("team/ab", "team/a", False),
        ("team/ab", "team/a/", False),
        ("team", "team/a", False),
        ("anything", "", True),
    ],
)
def test_scope_ends_at_a_path_boundary(path: str, prefix: str, inside: bool) -> None:
    assert in_scope(path, prefix) is inside


def test_prefixes_may_end_in_one_slash() -> None:
    assert check_prefix("") == ""
    assert check_prefix("a/") == "a/"
    with pytest.raises(Invalid):
        check_prefix("a//")


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a/b", "a b", "a" * 64, "é", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(Invalid):
        check_name(name)


def test_metadata_is_bounded() -> None:
    assert check_metadata({"mtime": "1"}) == {"mtime": "1"}
    with pytest.raises(TooLarge):
        check_metadata({str(number): "" for number in range(65)})
    with pytest.raises(TooLarge):
        check_metadata({"k": "v" * 4096})
