"""The page and the command line say the same of the same values, to the letter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route

from copypool.cli.insight import explain_text
from copypool.cli.output import printable, readable_age, readable_bytes, readable_time, status_text
from copypool.protocol.api import NodeInfo, StatusReply
from copypool.protocol.insight import ExplainReply
from copypool_coordinator import dashboard
from kit.browser import looking

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "http://words.test/"

SIZES = [0, 1, 1023, 1024, 1280, 1536, 1792, 1075, 10_000, 2**20 - 1, 2**20, 1.25 * 2**20, 2**30 * 3 // 4, 2**40, 2**52]
AGES = [
    0.0,
    0.05,
    0.25,
    0.35,
    0.75,
    1.45,
    59.95,
    119.949,
    119.99,
    120.0,
    150.0,
    210.0,
    3_599.0,
    7_199.0,
    7_200.0,
    8_100.0,
]
TIMES = [None, 0.0, 1.999, 1_700_000_000.5, 1_790_000_000.0]
NAMES = [
    "plain/ä/ß/日本/🙂",
    "<script>alert(1)</script>&amp;\"'`",
    "tab\tline\nreturn\rbell\x07del\x7f",
    "bidi\u202efdp\u2066x\u2069 zero\u200bwidth\ufeff nbsp\u00a0em\u2003 line\u2028 next\u0085",
    "private\ue000 tag\U000e0001 backslash\\n",
]


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    async def answer(route: Route) -> None:
        name = route.request.url.removeprefix(ORIGIN)
        if name == "":
            await route.fulfill(body="<!doctype html><link rel=icon href=data:,>", content_type="text/html")
        else:
            await route.fulfill(body=(dashboard._FOLDER / name).read_bytes(), content_type="text/javascript")

    async with looking(browser, "about:blank") as page:
        await page.route(f"{ORIGIN}**", answer)
        await page.goto(ORIGIN)
        yield page


async def said(page: Page, function: str, values: list[Any]) -> list[str]:
    found: list[str] = await page.evaluate(
        "async ([name, values]) => { const words = await import('/words.js'); return values.map(words[name]); }",
        [function, values],
    )
    return found


async def test_sizes_ages_times_and_names(page: Page) -> None:
    sizes = [int(size) for size in SIZES]
    assert await said(page, "readableBytes", sizes) == [readable_bytes(size) for size in sizes]
    ages = [*AGES, *(number / 40 for number in range(0, 6_000, 7))]
    assert await said(page, "readableAge", ages) == [readable_age(age) for age in ages]
    assert await said(page, "readableTime", TIMES) == [readable_time(time) for time in TIMES]
    assert await said(page, "printable", NAMES) == [printable(name) for name in NAMES]


def healthy_status() -> StatusReply:
    return StatusReply(
        healthy=True, reasons=[], files=1, bytes=1, as_of_unix_s=1.0, debt_bytes=0, debt_extents=0, debt_oldest_s=0.0,
        damaged_locations=0, under_protected_extents=0, unverified_bytes=0, unavailable_files=0, lost_files=0, nodes=[],
        leader="c1", coordinator="c1", brake="", catalog_bytes=0,
    )  # fmt: skip


async def test_the_first_line_of_status(page: Page) -> None:
    healthy = healthy_status()
    replies = [
        healthy,
        msgspec.structs.replace(healthy, empty=True),
        msgspec.structs.replace(healthy, unverified_bytes=4_321, empty=True),
        msgspec.structs.replace(healthy, healthy=False, reasons=["one <b>reason</b>", "another"]),
        msgspec.structs.replace(healthy, healthy=False, unverified_bytes=1),
    ]
    lines = [status_text(reply).splitlines()[0] for reply in replies]
    assert await said(page, "headline", [msgspec.to_builtins(reply) for reply in replies]) == lines


async def test_the_first_line_of_explain(page: Page) -> None:
    replies = [
        ExplainReply("default", name, 1, 1, "blake3:00", 1.0, [], 0, met, proven, [])
        for name in NAMES
        for met, proven in ((True, True), (True, False), (False, False))
    ]
    lines = [explain_text(reply).splitlines()[0] for reply in replies]
    assert await said(page, "explained", [msgspec.to_builtins(reply) for reply in replies]) == lines


async def test_how_bad_it_is(page: Page) -> None:
    up = NodeInfo("n1", 1, "up", "z", "h", "", 1, None, 1, 1, 1, 0.1)
    healthy = msgspec.structs.replace(healthy_status(), nodes=[up])
    behind = msgspec.structs.replace(healthy, healthy=False, reasons=["bytes have no copy"])
    cases = {
        "ok": [healthy],
        "warn": [behind],
        "bad": [
            msgspec.structs.replace(behind, **change)
            for change in (
                {"lost_files": 1},
                {"unavailable_files": 1},
                {"doubtful_files": 1},
                {"catalog_down": True},
                {"leader": ""},
                {"nodes": [msgspec.structs.replace(up, state="away")]},
            )
        ],
    }
    for tone, replies in cases.items():
        assert set(await said(page, "tone", [msgspec.to_builtins(reply) for reply in replies])) == {tone}
