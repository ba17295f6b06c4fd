"""The in-memory store that plans are tested against behaves as the real etcd does."""

from __future__ import annotations

import random

import pytest

from copypool_coordinator import keys
from copypool_coordinator.etcd import (
    Compare,
    Etcd,
    EtcdSettings,
    KeyValue,
    Op,
    create_equals,
    delete,
    get,
    mod_equals,
    put,
    value_equals,
)
from kit.memory_store import MemoryStore

KEYS = [keys.file(1, name) for name in "abcd"]


def some_compares(chance: random.Random, seen: list[int]) -> list[Compare]:
    makers = [
        lambda key: mod_equals(key, chance.choice([0, *seen])),
        lambda key: create_equals(key, chance.choice([0, *seen])),
        lambda key: value_equals(key, chance.choice([b"1", b"2"])),
    ]
    return [chance.choice(makers)(chance.choice(KEYS)) for _ in range(chance.randrange(3))]


def some_ops(chance: random.Random) -> list[Op]:
    ops: list[Op] = [get(key) for key in KEYS] + [get(KEYS[0], KEYS[-1], limit=chance.randrange(3))]
    for key in KEYS:
        kind = chance.randrange(4)
        if kind == 0:
            ops.append(put(key, chance.choice([b"1", b"2"])))
        elif kind == 1:
            ops.append(delete(key))
    chance.shuffle(ops)
    return ops


def shape(kvs: tuple[KeyValue, ...], base: int) -> list[tuple[bytes, bytes, int, int, int]]:
    return [(kv.key, kv.value, kv.create_revision - base, kv.mod_revision - base, kv.version) for kv in kvs]


@pytest.mark.parametrize("seed", range(8))
async def test_the_memory_store_answers_as_etcd_does(endpoint: str, seed: int) -> None:
    etcd = await Etcd.connect(EtcdSettings((endpoint,)))
    try:
        await etcd.txn([], [delete(keys.ROOT, b"/cp0")])
        base = (await etcd.txn([], [get(KEYS[0])])).revision
        model = MemoryStore()
        chance = random.Random(seed)
        offsets: list[int] = []
        for _ in range(60):
            state = chance.getstate()
            compares = some_compares(chance, [offset + base for offset in offsets])
            real_ops, real_otherwise = some_ops(chance), some_ops(chance)
            chance.setstate(state)
            model_compares = some_compares(chance, [offset + 1 for offset in offsets])
            assert (some_ops(chance), some_ops(chance)) == (real_ops, real_otherwise)
            real = await etcd.txn(compares, real_ops, real_otherwise)
            fake = model.txn(model_compares, real_ops, real_otherwise)
            assert (fake.succeeded, fake.revision - 1) == (real.succeeded, real.revision - base)
            assert [shape(kvs, 1) for kvs in fake.responses] == [shape(kvs, base) for kvs in real.responses]
            offsets.append(real.revision - base)
    finally:
        await etcd.close()
