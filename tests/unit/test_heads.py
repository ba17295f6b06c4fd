"""The filter in front of aiohttp knows one shape of request, and lets nothing else past."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from copypool.protocol.errors import BrokenInvariant
from copypool.serving.heads import HEAD_MAX_BYTES, Asked, Told, fits, read_block, split_head, write_head

PLAIN = b"GET /v1/files/a/b%20c HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nAccept:*/* \r\n\r\n"


def read(data: bytes) -> tuple[str, dict[str, str]] | None:
    """Target and kept headers, as a connection reads them."""
    found = split_head(data)
    block = None if found is None else read_block(found[2])
    if found is None or block is None or not fits(found[0], block.length, found[3]):
        return None
    return found[1], dict(block.kept)


def with_header(line: bytes) -> bytes:
    return PLAIN[:-2] + line + b"\r\n\r\n"


def test_a_plain_get_is_read() -> None:
    assert read(PLAIN) == ("/v1/files/a/b%20c", {"Authorization": "Bearer t", "Accept": "*/*"})
    assert read(with_header(b"CONNECTION: Keep-Alive")) is not None


PUT = b"PUT /v1/files/1/a HTTP/1.1\r\nHost: x\r\nCopypool-write-id:  00ff \t\r\nContent-Length: 5\r\n\r\nbytes"


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match", "If-Unmodified-Since"])
def test_a_request_with_a_condition_says_so(name: str) -> None:
    found = split_head(with_header(name.lower().encode() + b": *"))
    assert found is not None
    block = read_block(found[2])
    assert block is not None
    assert block.kept[name] == "*"
    assert Asked("GET", found[1], block.kept).conditional
    assert not Asked("GET", found[1], {"Accept": "*/*"}).conditional


def test_a_put_is_read_with_the_whole_of_its_body() -> None:
    assert read(PUT) == ("/v1/files/1/a", {"Copypool-Write-Id": "00ff"})
    assert read(PUT.replace(b"5", b"0").removesuffix(b"bytes")) is not None


@pytest.mark.parametrize(
    "data",
    [
        PUT[:-1],
        PUT + b"x",
        PUT.removesuffix(b"bytes"),
        PUT.replace(b"Content-Length: 5\r\n", b""),
        PUT.replace(b": 5", b": +5"),
        PUT.replace(b": 5", b": 5, 5"),
        PUT.replace(b": 5", b": 5 5"),
        PUT.replace(b": 5", b": 0x5"),
        PUT.replace(b": 5", b": 000000005"),
        PUT.replace(b"Host", b"Transfer-Encoding: chunked\r\nHost"),
        PUT.replace(b"Host", b"Content-Length: 5\r\nHost"),
        PUT.replace(b"Host", b"Expect: 100-continue\r\nHost"),
        PLAIN.replace(b"GET", b"HEAD"),
        PLAIN.replace(b"GET", b"get"),
        PLAIN.replace(b"/1.1", b"/1.0"),
        PLAIN.replace(b" HTTP", b"  HTTP"),
        PLAIN.replace(b"/v1", b"http://x/v1"),
        PLAIN.replace(b"%20", b"\xc3\xa4"),
        PLAIN.replace(b"%20", b"\n"),
        PLAIN.replace(b"\r\n", b"\n"),
        PLAIN.replace(b"Host: x\r\n", b""),
        PLAIN[:-1],
        PLAIN[:-2],
        PLAIN + PLAIN,
        PLAIN + b"x",
        b"\r\n" + PLAIN,
        b"GET /x HTTP/1.1\r\n\r\n",
        with_header(b"Content-Length: 0"),
        with_header(b"Content-Length: 4\r\n\r\nGET /"),
        with_header(b"Transfer-Encoding: chunked"),
        with_header(b"Connection: close"),
        with_header(b"Connection: Upgrade"),
        with_header(b"Upgrade: websocket"),
        with_header(b"Expect: 100-continue"),
        with_header(b"Range: bytes=0-1"),
        with_header(b"If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT"),
        with_header(b"Copypool-Unknown: 1"),
        with_header(b"host: y"),
        with_header(b"Accept: a"),
        with_header(b" folded"),
        with_header(b"Cookie : a"),
        with_header(b"Cookie: a\rb"),
        with_header(b"Cookie: \x00"),
        with_header(b"Cookie: \xff"),
        with_header(b": nothing"),
        with_header(b"Cookie: " + b"a" * HEAD_MAX_BYTES),
    ],
)
def test_all_else_goes_the_ordinary_way(data: bytes) -> None:
    assert read(data) is None


_PIECES = [
    b"GET /v1/f",
    b" HTTP/1.1",
    b"\r\n",
    b"\n",
    b"Host: x",
    b"Content-Length: 3",
    b"Range",
    b":",
    b" ",
    b"/a",
    b"?b",
]


@given(
    st.lists(st.sampled_from([*_PIECES, b"\r\nHost: x\r\n\r\n", b"Accept: */*", b"\t", b"\x80", b"%41"]), max_size=12)
)
def test_what_is_read_is_what_aiohttp_reads(pieces: list[bytes]) -> None:
    data = b"GET /v1/f" + b"".join(pieces)
    found = read(data)
    if found is None:
        return
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(asyncio.Protocol(), loop, 2**16)
        ((message, payload),), upgraded, tail = parser.feed_data(data)
    finally:
        loop.close()
    assert (message.method, message.path, upgraded, tail) == ("GET", found[0], False, b"")
    assert payload.is_eof()
    assert not message.should_close
    assert {name: message.headers[name] for name in found[1]} == found[1]


def test_a_head_is_written_with_what_every_answer_has() -> None:
    head = write_head(Told(200, {"ETag": '"1"'}, b"abc"), 0.0)
    assert head.startswith(
        b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 3\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: '
    )
    assert head.endswith(b"\r\n\r\n")


def test_a_header_cannot_hold_another_one() -> None:
    for value in ("a\r\nSet-Cookie: b", "a\nb", "a\r"):
        with pytest.raises(BrokenInvariant):
            write_head(Told(200, {"X": value}, b""), 0.0)
