"""A flipped bit on a disk is found before it reaches anybody (invariant 3), marked at that place alone, and mended."""

from __future__ import annotations

import random

import pytest

from copypool import Client
from copypool.protocol.api import Event, LocationInfo
from copypool.protocol.stripes import BLOCK_BYTES, STRIPE_BYTES
from kit.cluster import RealCluster, until
from kit.workload import NAMESPACE


async def primary_of(client: Client, path: str) -> tuple[int, LocationInfo]:
    """The extent of a one-segment file, and its location in the primary pool."""
    (segment,) = (await client.stat(NAMESPACE, path)).segments
    (location,) = [location for location in segment.locations if location.pool_type == "primary"]
    return segment.extent, location


async def test_a_flipped_bit_of_a_primary_is_served_from_the_copy_and_mended(
    cluster: RealCluster, client: Client
) -> None:
    content = random.Random(6).randbytes(200_000)
    await client.put(NAMESPACE, "flip/primary", content)
    await client.wait_copied(timeout_s=60)
    extent, location = await primary_of(client, "flip/primary")
    cluster.flip(location.node, extent, location.offset + 100_000)

    assert await client.get(NAMESPACE, "flip/primary") == content

    async def chain() -> list[Event]:
        """Read -> mark -> repair, found backwards by their causes."""
        events = {event.id: event async for event in client.events()}
        for event in events.values():
            if event.kind == "LocationRepaired" and event.extent == extent:
                links = [event]
                while links[-1].cause in events:
                    links.append(events[links[-1].cause])
                return links
        return []

    links = await until(chain, "the location is repaired", within_s=60)
    assert "LocationDamaged" in [link.kind for link in links]
    damaged = next(link for link in links if link.kind == "LocationDamaged")
    assert (damaged.volume, damaged.node) == (location.volume, location.node)
    await until(lambda: cluster.is_green(client), "status is green again", within_s=60)
    assert await client.get(NAMESPACE, "flip/primary") == content


@pytest.mark.parametrize("apart_bytes", [BLOCK_BYTES, STRIPE_BYTES])
async def test_bad_blocks_at_different_places_of_both_locations_lose_nothing(
    cluster: RealCluster, client: Client, apart_bytes: int
) -> None:
    path = f"flip/both-{apart_bytes}"
    content = random.Random(7).randbytes(3 * STRIPE_BYTES)
    await client.put(NAMESPACE, path, content)
    await client.wait_copied(timeout_s=60)
    (segment,) = (await client.stat(NAMESPACE, path)).segments
    for number, location in enumerate(segment.locations):
        cluster.flip(location.node, segment.extent, location.offset + 100_000 + number * apart_bytes)

    assert await client.get(NAMESPACE, path) == content

    async def both_marked() -> bool:
        kinds = {(event.kind, event.volume) async for event in client.events() if event.extent == segment.extent}
        return all(("LocationDamaged", location.volume) in kinds for location in segment.locations)

    await until(both_marked, "both locations are found to be damaged", within_s=60)
    await until(lambda: cluster.is_green(client), "both are mended from each other's good blocks", within_s=60)
    shown = await client.stat(NAMESPACE, path)
    assert {location.pool_type for location in shown.segments[0].locations if location.state == "good"} == {
        "primary",
        "copy",
    }
    assert await client.get(NAMESPACE, path) == content
