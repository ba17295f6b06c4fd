"""Range and condition headers of plain HTTP, at their edges."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from multidict import CIMultiDict

from copypool.protocol.conditions import byte_range, etag_of, write_condition
from copypool.protocol.errors import Invalid, RangeNotSatisfiable
from copypool.protocol.versions import time_ms_of
from copypool_coordinator.conditions import changed_since, is_other, not_modified

ETAG = etag_of(7)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 10)),
        ("bytes=9-9", (9, 10)),
        ("bytes=3-99", (3, 10)),
        ("bytes=-1", (9, 10)),
        ("bytes=-10", (0, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=0-1,3-4", None),
        ("bytes=0-1, -2", None),
        ("items=0-1", None),
        ("bytes=0-" + "9" * 30, (0, 10)),
    ],
)
def test_one_range_or_the_whole_file(text: str, wanted: tuple[int, int] | None) -> None:
    assert byte_range({"Range": text}, ETAG, 10) == wanted


@pytest.mark.parametrize("text", ["bytes=5-3", "bytes=-", "bytes=+1-2", "bytes=1", "abc", "", "bytes=0-" + "9" * 5000])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        byte_range({"Range": text}, ETAG, 10)


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_outside_is_refused(text: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        byte_range({"Range": text}, ETAG, 10)


@pytest.mark.parametrize("text", ["bytes=0-", "bytes=0-0", "bytes=-1"])
def test_an_empty_file_has_no_range(text: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        byte_range({"Range": text}, ETAG, 0)


def test_a_range_of_another_version_is_the_whole_file() -> None:
    assert byte_range({"Range": "bytes=0-1", "If-Range": ETAG}, ETAG, 10) == (0, 2)
    assert byte_range({"Range": "bytes=0-1", "If-Range": etag_of(6)}, ETAG, 10) is None


@pytest.mark.parametrize(
    ("text", "same"),
    [(ETAG, True), (f'"1", {ETAG}', True), (f"W/{ETAG}", True), ("*", True), ('"8"', False), ("", False)],
)
def test_if_none_match(text: str, same: bool) -> None:
    assert not_modified({"If-None-Match": text}, ETAG) is same
    assert not not_modified({}, ETAG)


@pytest.mark.parametrize(
    ("headers", "other"),
    [
        ({}, False),
        ({"If-Match": ETAG}, False),
        ({"If-Match": "*"}, False),
        ({"If-Match": f'"1", {ETAG}'}, False),
        ({"If-Match": '"8"'}, True),
        ({"If-Match": f"W/{ETAG}"}, True),
        ({"If-Match": ""}, True),
    ],
)
def test_a_get_may_ask_for_one_version_alone(headers: dict[str, str], other: bool) -> None:
    assert is_other(headers, ETAG) == other


def test_two_lines_of_a_condition_are_one_list() -> None:
    """RFC 9110, 5.3: what names this version may stand in the second line."""
    lines = CIMultiDict([("If-Match", '"1"'), ("If-Match", ETAG), ("If-None-Match", '"1"'), ("If-None-Match", ETAG)])
    assert not is_other(lines, ETAG)
    assert not_modified(lines, ETAG)
    assert not not_modified(lines, etag_of(8))


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
def test_no_line_of_a_write_s_condition_is_left_out(name: str) -> None:
    with pytest.raises(Invalid):
        write_condition(CIMultiDict([(name, "*"), (name, '"1"')]))


def test_a_part_of_a_file_is_not_taken_for_all_of_it() -> None:
    with pytest.raises(Invalid, match="part of a file"):
        write_condition({"Content-Range": "bytes 3000-9999/10000"})


@pytest.mark.parametrize(
    ("since_s", "more", "changed"),
    [(-1, {}, True), (0, {}, False), (3600, {}, False), (-1, {"If-Match": ETAG}, False)],
)
def test_a_file_that_was_stored_after_the_named_time_has_changed(
    since_s: int, more: dict[str, str], changed: bool
) -> None:
    version = 117662692490076160
    stored_s = time_ms_of(version) // 1000
    headers = {"If-Unmodified-Since": formatdate(stored_s + since_s, usegmt=True), **more}
    assert changed_since(headers, version) is changed


def test_what_is_no_date_is_ignored() -> None:
    assert not changed_since({"If-Unmodified-Since": "yesterday"}, 117662692490076160)


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip", "identity"])
def test_a_body_in_a_transfer_coding_that_nobody_undoes_is_not_stored(coding: str) -> None:
    with pytest.raises(Invalid, match="transfer coding"):
        write_condition({"Transfer-Encoding": coding})
    assert write_condition({"Transfer-Encoding": " Chunked"}) == (False, 0)


@pytest.mark.parametrize("text", [f"Mon, 01 Jan 2024 00:00:00 +{'9' * 20}", f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"])
def test_a_date_beyond_all_numbers_is_ignored(text: str) -> None:
    assert not changed_since({"If-Unmodified-Since": text}, 1)
