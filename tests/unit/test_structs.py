"""Releases side by side, and rows that another one wrote: fields are only ever added, at the end, with a default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.structs import broken, structs

RECORDED: dict[str, list[str]] = json.loads(Path(__file__).with_name("recorded_structs.json").read_text())


def test_what_was_recorded_is_understood() -> None:
    """A struct that is broken on purpose needs a word in CHANGELOG.md and in the runbook of upgrades."""
    today = structs()
    assert not RECORDED.keys() - today.keys(), "an older release speaks these"
    found = {name: broken(fields, today[name]) for name, fields in RECORDED.items()}
    assert not {name: why for name, why in found.items() if why}


def test_the_record_is_of_this_project() -> None:
    assert {"copypool_coordinator.rows.NodeRow", "copypool.protocol.internal.CommitRequest"} <= RECORDED.keys()


@pytest.mark.parametrize(
    ("today", "why"),
    [
        (["array", "a", "b="], ""),
        (["array", "a", "b=", "c="], ""),
        (["array", "b=", "a"], "began with"),
        (["array", "a"], "began with"),
        (["map", "a", "b="], "encoded"),
        (["array", "a", "b=", "c"], "cannot be read without"),
        (["array", "a", "b"], "cannot be read without"),
    ],
)
def test_what_breaks_an_array(today: list[str], why: str) -> None:
    found = broken(["array", "a", "b="], today)
    assert why in found
    assert bool(why) == bool(found)


def test_a_map_may_be_in_any_order_and_loses_nothing() -> None:
    assert not broken(["map", "a", "b="], ["map", "c=", "b=", "a"])
    assert broken(["map", "a", "b="], ["map", "a"]) == "lacks ['b']"
