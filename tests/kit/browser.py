"""A real Chromium that looks at pages. Whatever a page's console reports fails its test.

    async with chromium() as browser:
        async with looking(browser, url) as page: ...

`COPYPOOL_SCREENSHOTS=DIR` keeps pictures (`picture(page, name)`), to be looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

DESK = (1280, 900)
PHONE = (390, 844)
WITHIN_MS = 60_000  #: of every expectation: the machine may be busy with a cluster
_ARGUMENTS = (
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)
#: What the browser itself says of an answer with an error's status or of a connection that failed.
NETWORK = "Failed to load resource"


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The program; it is gone when the block ends."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program is not None, "no chromium: .ci/setup-browser installs it"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=[*_ARGUMENTS])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def looking(
    browser: Browser, url: str, *, size: tuple[int, int] = DESK, dark: bool = False, allowed: str = ""
) -> AsyncIterator[Page]:
    """A page that shares nothing with others. What begins with `allowed` may be reported, and nothing else."""
    reported: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not (allowed and message.text.startswith(allowed)):
            reported.append(f"{message.type}: {message.text} ({message.location})")

    context = await browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    try:
        page = await context.new_page()
        page.set_default_timeout(WITHIN_MS)
        page.on("console", hear)
        page.on("pageerror", lambda error: reported.append(f"uncaught: {error}"))
        await page.goto(url)
        try:
            yield page
        except BaseException:
            print("the page reported:", reported or "nothing")
            raise
        assert not reported, reported
    finally:
        await context.close()


async def sign_in(page: Page, token: str) -> None:
    """Give the token, as a person does: by the keyboard alone."""
    await page.locator("#token").wait_for()
    await page.keyboard.type(token)
    await page.keyboard.press("Enter")


async def picture(page: Page, name: str, **settings: Any) -> None:
    """A screenshot, where somebody wants to see them."""
    folder = os.environ.get("COPYPOOL_SCREENSHOTS")
    if folder:
        await page.screenshot(path=Path(folder) / f"{name}.png", **settings)
