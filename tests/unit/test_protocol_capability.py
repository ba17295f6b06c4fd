"""Capabilities: bound to node, purpose, place and time; nothing of them can be changed (ATTACKS D1, D2)."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from msgspec import structs

from copypool.protocol.capability import (
    Capability,
    PullCapability,
    ReadCapability,
    WriteCapability,
    check_write,
    derive_key,
    derive_node_keys,
    open_capability,
    seal_capability,
)
from copypool.protocol.errors import Forbidden, NotFound
from copypool.protocol.tokens import Principal, Role

MASTER = b"m" * 32
NODE = 5
KEYS = {1: derive_node_keys(MASTER, NODE, 1)}
READ = ReadCapability(1, NODE, extent=7, offset=4096, length=10, version=3, expires_ms=1000)
WRITE = WriteCapability(1, NODE, volume=2, class_id=1, namespace=4, prefix="team/a", max_bytes=100, expires_ms=1000)
PULL = PullCapability(1, NODE, puller=6, extent=7, expires_ms=1000)


@pytest.mark.parametrize("capability", [READ, WRITE, PULL])
def test_round_trip(capability: Capability) -> None:
    assert open_capability(seal_capability(capability, KEYS[1]), KEYS, NODE, 1000) == capability


@pytest.mark.parametrize("capability", [READ, WRITE, PULL])
def test_every_flipped_bit_is_refused(capability: Capability) -> None:
    raw = bytearray(urlsafe_b64decode(seal_capability(capability, KEYS[1])))
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        with pytest.raises(Forbidden):
            open_capability(urlsafe_b64encode(changed).decode(), KEYS, NODE, 0)


@pytest.mark.parametrize("text", ["", "!", "AAAA", "é", "a" * 5000])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(Forbidden):
        open_capability(text, KEYS, NODE, 0)


def test_expired_is_refused_and_says_so() -> None:
    with pytest.raises(Forbidden) as caught:
        open_capability(seal_capability(READ, KEYS[1]), KEYS, NODE, 1001)
    assert caught.value.details == {"expired": True}


def test_another_nodes_key_mints_nothing_here() -> None:
    other = derive_node_keys(MASTER, 6, 1)
    with pytest.raises(Forbidden):
        open_capability(seal_capability(READ, other), KEYS, NODE, 0)


def test_keys_differ_by_purpose_node_and_number() -> None:
    keys = {
        derive_key(MASTER, purpose, node, number)
        for purpose in ("capability-read", "capability-write", "capability-pull", "credential", "command")
        for node in (1, 2)
        for number in (1, 2)
    }
    assert len(keys) == 20


def test_a_write_capability_covers_its_namespace_and_prefix_only() -> None:
    assert check_write(WRITE, 4, "team/a/x", 100) is WRITE
    for namespace, path, size in [(5, "team/a/x", 1), (4, "team/ab", 1), (4, "other", 1), (4, "team/a/x", 101)]:
        with pytest.raises(Forbidden):
            check_write(WRITE, namespace, path, size)
    with pytest.raises(Forbidden):
        check_write(READ, 4, "team/a/x", 1)


def test_roles_include_the_lower_ones_and_scope_hides_names() -> None:
    writer = Principal("w", Role.writer, namespace="web", prefix="team/a")
    writer.require(Role.reader, "web", "team/a/x")
    writer.require(Role.writer, "web", "team/a")
    for namespace, path in [("other", "team/a"), ("web", "team/ab"), ("web", "team")]:
        with pytest.raises(NotFound):
            writer.require(Role.reader, namespace, path)
    with pytest.raises(Forbidden):
        writer.require(Role.operator, "web", "team/a")
    with pytest.raises(Forbidden):
        Principal("o", Role.admin, namespace="web").require(Role.operator)


def test_an_exact_capability_covers_its_path_alone() -> None:
    exact = structs.replace(WRITE, exact=True)
    assert check_write(exact, 4, "team/a", 0) is exact
    with pytest.raises(Forbidden):
        check_write(exact, 4, "team/a/b", 0)
    assert check_write(WRITE, 4, "team/a/b", 0) is WRITE
