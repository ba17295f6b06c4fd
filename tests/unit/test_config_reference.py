"""The reference pages of settings are those of the types, and every setting says what it is for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from copypool.serving.reference import meanings, page
from copypool_coordinator import config as coordinator_config
from copypool_node import config as node_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ("node", "a storage node", node_config.NodeConfig, node_config.ENV_PREFIX),
    ("coordinator", "a coordinator", coordinator_config.Config, coordinator_config.ENV_PREFIX),
]


@pytest.mark.parametrize(("folder", "title", "kind", "prefix"), PAGES)
def test_the_reference_is_that_of_the_types(folder: str, title: str, kind: type[msgspec.Struct], prefix: str) -> None:
    assert (ROOT / folder / "CONFIG.md").read_text("utf-8") == page(title, kind, prefix), "run `make reference`"


@pytest.mark.parametrize(("folder", "title", "kind", "prefix"), PAGES)
def test_every_setting_says_what_it_is_for(folder: str, title: str, kind: type[msgspec.Struct], prefix: str) -> None:
    rows = [line.split(" | ") for line in page(title, kind, prefix).splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert [row[0] for row in rows if not row[-1].strip(" |")] == []


def test_a_meaning_stands_behind_a_field_or_above_it() -> None:
    found = meanings(node_config.Limits)
    assert found["connections"] == "of clients and peers at a time; one more is cut off at once"
    assert found["extent_soft_bytes"] == "an extent this long takes no further group"
