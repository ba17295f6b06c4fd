"""The dashboard as people see it: a real Chromium on a real cluster, while things go wrong."""

from __future__ import annotations

import json
import os

import pytest
from playwright.async_api import Browser, Page, expect

from copypool import Client
from kit.browser import NETWORK, PHONE, looking, picture, sign_in
from kit.cluster import RealCluster, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = "reports/<script>window.broken=1</script><img src=x onerror=window.broken=1>&\u202efdp.txt"


async def green(cluster: RealCluster, client: Client) -> None:
    await until(lambda: cluster.is_green(client), "status is green", within_s=60)


async def shown_line(page: Page) -> str:
    return await page.locator("#protection").get_attribute("data-line") or ""


async def test_the_headline_says_what_status_says(
    browser: Browser, cluster: RealCluster, client: Client, url: str, token: str
) -> None:
    for number in range(5):
        await client.put("default", f"reports/{number}.bin", os.urandom(300_000))
    await green(cluster, client)
    async with looking(browser, url) as page:
        assert page.url.endswith("/ui/")
        await picture(page, "login")
        await sign_in(page, token)
        await expect(page.locator("#verdict-word")).to_have_text("OK")

        async def same() -> bool:
            said = (await cluster.cli("status")).out.decode().splitlines()
            return await shown_line(page) == said[0]

        await until(same, "the page says the first line of `copypool status`", within_s=60)
        status = json.loads((await cluster.cli("--json", "status")).out)
        await expect(page.locator(".node")).to_have_count(len(status["nodes"]))
        await expect(page.locator(".tile", has_text="Below policy").locator(".value")).to_have_text("0")
        await expect(page.locator(".tile", has_text="Recovery point").locator(".value")).to_have_text("0.0 s")
        await expect(page.locator(".pool[data-pool=copy] [data-volume]")).to_have_count(2)
        await expect(page.locator("#events-live")).to_have_text("LIVE")
        await picture(page, "green", full_page=True)
        # The token is nowhere but in this tab's session: no URL, no cookie, no lasting storage.
        assert token not in page.url
        assert await page.context.cookies() == []
        assert await page.evaluate("localStorage.length") == 0
        await page.reload()
        await expect(page.locator("#verdict-word")).to_have_text("OK")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.locator("#login")).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0
    async with looking(browser, url, dark=True) as page:
        await sign_in(page, token)
        await expect(page.locator("#verdict-word")).to_have_text("OK")
        await expect(page.locator("#events-live")).to_have_text("LIVE")
        await picture(page, "green-dark", full_page=True)


async def test_a_wrong_token_is_told_so_and_a_readers_token_what_it_may_not_see(
    browser: Browser, cluster: RealCluster, client: Client, url: str
) -> None:
    made = (await client.token_create("looker", "reader")).token
    async with looking(browser, url, allowed=NETWORK) as page:
        await sign_in(page, "cpt_" + "0" * 48)
        await expect(page.locator("#login-message")).to_contain_text("Wrong token")
        await expect(page.locator("#board")).to_be_hidden()
        await page.locator("#token").fill(made)
        await page.keyboard.press("Enter")
        await expect(page.locator(".node")).to_have_count(4)
        await expect(page.locator("#pools-note")).to_contain_text("'operator'")
        await expect(page.locator("#events-note")).to_contain_text("'operator'")


async def test_a_killed_node_is_seen_without_a_reload(
    browser: Browser, cluster: RealCluster, client: Client, url: str, token: str
) -> None:
    receipt = await client.put("default", "reports/of-the-victim.bin", os.urandom(1000))
    victim = receipt.volumes[0].rpartition("-")[0]  # a node without bytes may be away, and protection is still whole
    shown = f".node[data-node={victim}]"
    await green(cluster, client)
    async with looking(browser, url) as page:
        await sign_in(page, token)
        await expect(page.locator("#verdict-word")).to_have_text("OK")
        await expect(page.locator(shown)).to_have_attribute("data-state", "up")
        # It is waited for: its loss is to be seen, however slowly the page is drawn, and not mended meanwhile.
        await client.policies.maintenance(victim, 600)
        await cluster.kill(victim)
        await expect(page.locator(shown)).to_have_attribute("data-state", "away")
        await expect(page.locator("#verdict-word")).to_have_text("NOT OK")
        await expect(page.locator("#event-list")).to_contain_text("NodeAway")
        await picture(page, "node-away", full_page=True)
        await cluster.start(victim)
        await client.policies.maintenance(victim, 0)
        await expect(page.locator(shown)).to_have_attribute("data-state", "up")
        await expect(page.locator("#verdict-word")).to_have_text("OK")


async def test_a_process_is_followed_to_its_end_and_its_events_arrive(
    browser: Browser, cluster: RealCluster, client: Client, url: str, token: str
) -> None:
    await client.put("default", "reports/more.bin", os.urandom(200_000))
    await green(cluster, client)
    async with looking(browser, url) as page:
        await sign_in(page, token)
        await expect(page.locator("#events-live")).to_have_text("LIVE")
        # Both copy nodes away: the backup has to wait, so that it is seen running, whatever the machine's speed.
        await cluster.stop("node3")
        await cluster.stop("node4")
        await client.put("default", "reports/waits.bin", os.urandom(200_000))
        started = json.loads((await cluster.cli("--json", "backup", "pool", "primary", "--no-wait")).out)
        card = page.locator(f"[data-process='{started['id']}']")
        await expect(card).to_have_attribute("data-state", "running")
        await expect(card.locator("[role=progressbar]")).to_have_attribute("aria-valuenow", "0")
        await expect(card).to_contain_text("ETA")
        await expect(page.locator("#event-list")).to_contain_text("ProcessStarted")
        await picture(page, "process", full_page=True)
        await cluster.cont("node3")
        await cluster.cont("node4")
        await expect(card).to_have_attribute("data-state", "done")
        await expect(page.locator("#event-list")).to_contain_text("ProcessDone")


async def test_a_hostile_name_is_text(
    browser: Browser, cluster: RealCluster, client: Client, url: str, token: str
) -> None:
    await client.put("default", HOSTILE, b"harmless")
    await green(cluster, client)
    async with looking(browser, url) as page:
        await sign_in(page, token)
        await page.locator("#explain-path").fill(f"default/{HOSTILE}")
        await page.keyboard.press("Enter")
        answer = page.locator("#explain-answer")
        await expect(answer).to_contain_text("<script>window.broken=1</script><img src=x onerror=window.broken=1>")
        await expect(answer).to_contain_text("\\u202efdp.txt")
        said = (await cluster.cli("explain", f"default/{HOSTILE}")).out.decode().splitlines()
        await expect(answer).to_have_text(said[0])
        version, _, _ = said[1].partition(",")
        await expect(page.locator("#explain-result")).to_contain_text(f"{version},")
        await expect(page.locator(".copy")).to_have_count(2)
        assert await page.evaluate("typeof window.broken") == "undefined"
        assert await page.locator("#explain-result script, #explain-result img").count() == 0
        await page.locator("#explain").scroll_into_view_if_needed()
        await picture(page, "explain")


async def test_markup_and_scripts_that_the_page_did_not_bring_are_refused(browser: Browser, url: str) -> None:
    async with looking(browser, url, allowed="This document requires 'TrustedHTML'") as page:
        refused = await page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>'; return ''; } catch (error) { return error.name; } }"
        )
        assert refused == "TypeError"


async def test_a_page_of_which_a_part_did_not_arrive_says_so(browser: Browser, url: str) -> None:
    async with looking(browser, url, allowed=NETWORK) as page:
        await page.route("**/words.js", lambda route: route.abort())
        await page.reload()
        await expect(page.locator("#arriving")).to_contain_text("reload it")
        await expect(page.locator("#login")).to_be_hidden()
        await page.unroute("**/words.js")
        await page.reload()
        await expect(page.locator("#login")).to_be_visible()
        await expect(page.locator("#arriving")).to_have_count(0)


async def test_on_a_phone_nothing_scrolls_sideways(
    browser: Browser, cluster: RealCluster, client: Client, url: str, token: str
) -> None:
    long = "reports/" + "a-very-long-name-without-a-place-to-break" * 8
    await client.put("default", long, b"x")
    for dark in (False, True):
        async with looking(browser, url, size=PHONE, dark=dark) as page:
            await sign_in(page, token)
            await expect(page.locator(".node")).to_have_count(4)
            await expect(page.locator("[data-volume]")).to_have_count(4)
            await page.locator("#explain-path").fill(f"default/{long}")
            await page.keyboard.press("Enter")
            await expect(page.locator("#explain-answer")).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
            await picture(page, f"phone-explain{'-dark' if dark else ''}")
            await page.evaluate("scrollTo(0, 0)")
            await picture(page, f"phone{'-dark' if dark else ''}")


async def test_when_the_coordinator_is_gone_the_page_says_how_old_it_is_and_comes_back(
    browser: Browser, cluster: RealCluster, client: Client, url: str, token: str
) -> None:
    await green(cluster, client)
    async with looking(browser, url, allowed=NETWORK) as page:
        await sign_in(page, token)
        await expect(page.locator("#verdict-word")).to_have_text("OK")
        await cluster.kill("coordinator1")
        await expect(page.locator("#stale")).to_contain_text("What you see is")
        await expect(page.locator("#verdict-word")).to_have_text("NOT KNOWN")
        await expect(page.locator("#headline")).to_contain_text("ago it was: OK")
        await expect(page.locator("#events-live")).to_contain_text("NOT LIVE")
        await picture(page, "stale", full_page=True)
        await cluster.start("coordinator1")
        await expect(page.locator("#verdict-word")).to_have_text("OK")
        await expect(page.locator("#events-live")).to_have_text("LIVE")
        await expect(page.locator("#stale")).to_be_hidden()
