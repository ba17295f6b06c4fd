"""What a coordinator that reads for others says when every place has failed: wait, alarm, or gone for good."""

from __future__ import annotations

import pytest

from copypool.protocol.api import LocationState
from copypool.protocol.errors import CopypoolError, DataLost, DigestMismatch, Unavailable
from copypool_coordinator.routing import Place
from copypool_coordinator.streaming import nothing_left

BAD = DigestMismatch("a block fails its checksum")
AWAY = Unavailable("no answer", sent=False)
NONE_HERE = Unavailable("this node does not hold it")


def place(volume: int, state: LocationState, *, reachable: bool = True, given_up: bool = False) -> Place:
    name, far = f"n{volume}", 1 << 20
    return Place(volume, name, "http://x", f"v{volume}", volume, "p", "copy", state, reachable, far, given_up)


def said(*tried: tuple[Place, CopypoolError], offsite: tuple[str, ...] = ()) -> type[CopypoolError]:
    places = [each for each, _ in tried]
    return type(nothing_left("f", places, {each.volume_id: error for each, error in tried}, offsite))


def test_what_every_place_is_known_to_have_lost_is_lost() -> None:
    assert said() is DataLost
    gone = (place(2, "missing"), NONE_HERE)
    half = (place(3, "copying"), NONE_HERE)
    given_up = (place(4, "good", reachable=False, given_up=True), AWAY)
    assert said((place(1, "damaged"), BAD), gone, half, given_up) is DataLost


def test_bad_bytes_that_no_node_has_found_itself_yet_are_an_alarm() -> None:
    assert said((place(1, "good"), BAD), (place(2, "damaged"), BAD)) is DigestMismatch


@pytest.mark.parametrize("state", ["good", "damaged", "missing"])
def test_what_did_not_answer_may_come_back(state: LocationState) -> None:
    assert said((place(1, "damaged"), BAD), (place(2, state, reachable=False), AWAY)) is Unavailable


def test_what_is_offsite_may_be_brought_back() -> None:
    error = nothing_left("f", [place(1, "damaged")], {1: BAD}, ["vault-7"])
    assert isinstance(error, Unavailable)
    assert "vault-7 offsite may hold it" in error.message
