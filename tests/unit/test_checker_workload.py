"""The workload on a store in memory: honest ones pass the checker, whatever they lose on the wire; others do not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pytest

from copypool import BulkResult, Client, FileVersion
from copypool.protocol.api import ListEntry
from copypool.protocol.digests import digest_of, format_digest
from copypool.protocol.errors import (
    BY_CODE,
    CatalogDown,
    Conflict,
    CopypoolError,
    DataLost,
    Forbidden,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from kit.checker import Verdict, check
from kit.history import History, Kind, Outcome, availability
from kit.workload import Load, Store, Workload, flaw, payload, steps, write_outcome

QUICK = Load(
    seed=7,
    clients=8,
    operations_max=1500,
    duration_max_s=60.0,
    operation_max_s=10.0,
    folders=2,
    folder_files=6,
    medium_max_bytes=4096,
    large_max_bytes=10_000,
    large_share=0.02,
    impatient_max_s=0.001,
    pause_s=0.0,
)


@dataclass(frozen=True)
class Stated:
    version: int
    digest: str


class ModelStore:
    """A linearizable store behind a bad wire: it may refuse, lose requests and replies, and answer late."""

    def __init__(self, seed: int, *, trouble: float = 0.0) -> None:
        self.source = random.Random(seed)
        self.files: dict[str, tuple[int, bytes]] = {}
        self.version = 0
        self.trouble = trouble

    async def _wire(self, *, write: bool) -> None:
        for _ in range(self.source.randrange(4)):
            await asyncio.sleep(0)
        if self.source.random() < self.trouble:
            lost = OutcomeUnknown("the connection died; the write may have been applied")
            raise lost if write and self.source.random() < 0.5 else Unavailable("no node can be reached")

    async def _reply(self) -> None:
        for _ in range(self.source.randrange(4)):
            await asyncio.sleep(0)
        if self.source.random() < self.trouble:
            raise OutcomeUnknown("the reply was lost")

    def apply_put(self, path: str, content: bytes) -> int:
        self.version += 1
        self.files[path] = (self.version, content)
        return self.version

    def apply_delete(self, path: str) -> int:
        if path not in self.files:
            raise NotFound(f"there is no file {path!r}")
        self.version += 1
        del self.files[path]
        return self.version

    def look(self, path: str) -> tuple[int, bytes]:
        if path not in self.files:
            raise NotFound(f"there is no file {path!r}")
        return self.files[path]

    async def put(self, namespace: str, path: str, content: bytes) -> FileVersion:
        await self._wire(write=True)
        version = self.apply_put(path, content)
        await self._reply()
        return self._receipt(path, version, content)

    async def put_many(
        self, namespace: str, files: Sequence[tuple[str, bytes | Path]], *, keep_going: bool
    ) -> BulkResult:
        assert keep_going
        result = BulkResult(failed=[])
        for path, content in files:
            assert isinstance(content, bytes)
            try:
                await self.put(namespace, path, content)
            except CopypoolError as exc:
                result.add_failure(path, exc)
            else:
                result.files += 1
        return result

    async def delete(self, namespace: str, path: str) -> FileVersion:
        await self._wire(write=True)
        version = self.apply_delete(path)
        await self._reply()
        return self._receipt(path, version, b"")

    async def get(self, namespace: str, path: str) -> bytes:
        await self._wire(write=False)
        return self.look(path)[1]

    async def stat(self, namespace: str, path: str) -> Stated:
        await self._wire(write=False)
        version, content = self.look(path)
        return Stated(version, format_digest(digest_of(content)))

    def page(self, prefix: str) -> list[str]:
        return sorted(path for path in self.files if path.startswith(prefix))

    async def list(self, namespace: str, prefix: str) -> AsyncIterator[ListEntry]:
        await self._wire(write=False)
        entries = [
            ListEntry(
                path, self.files[path][0], len(self.files[path][1]), format_digest(digest_of(self.files[path][1]))
            )
            for path in self.page(prefix)
        ]
        for entry in entries:
            await asyncio.sleep(0)
            yield entry

    def _receipt(self, path: str, version: int, content: bytes) -> FileVersion:
        return FileVersion("default", path, version, len(content), format_digest(digest_of(content)), [], "copy", False)


def the_real_client_is_a_store(client: Client) -> Store:
    """Only mypy runs this."""
    return client


async def judged(store: Store, load: Load = QUICK) -> tuple[Verdict, History]:
    workload = Workload(store, load)
    await workload.run()
    if isinstance(store, ModelStore):
        store.trouble = 0.0
    await workload.read_everything()
    return check(workload.history.operations(), final=True), workload.history


# -- honest stores -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("trouble", [0.0, 0.1, 0.5])
async def test_an_honest_store_passes(trouble: float, tmp_path: Path) -> None:
    # A client that gives up after a millisecond may do so on a busy machine although the wire loses nothing.
    load = QUICK if trouble else replace(QUICK, impatient_share=0.0)
    verdict, history = await judged(ModelStore(1, trouble=trouble), load)
    assert verdict.ok, str(verdict)
    operations = history.operations()
    assert QUICK.operations_max <= len(operations) <= QUICK.operations_max + 8 * QUICK.clients + 13
    assert {one.kind for one in operations if not one.final} == set(Kind)
    # What a client gave up on purpose is no failure of the store: how often depends on this machine.
    felt = availability([one for one in operations if one.error != "timeout"])
    assert (felt.reads_failed > 0, felt.writes_failed > 0) == (trouble > 0, trouble > 0)
    assert felt.read_stall_max_s > 0
    assert felt.write_stall_max_s > 0
    history.dump(tmp_path / "run.jsonl")
    again = check(History.load(tmp_path / "run.jsonl").operations(), final=True)
    assert str(again) == str(verdict)


async def test_a_store_that_is_away_ends_in_time_and_fails_the_final_reading() -> None:
    class Away(ModelStore):
        async def _wire(self, *, write: bool) -> None:
            await asyncio.Event().wait()

    store = Away(1)
    store.apply_put("load/d000/f000", b"x")
    load = Load(seed=1, clients=3, operations_max=6, operation_max_s=0.02, pause_s=0.0, folders=1, folder_files=2)
    verdict, history = await judged(store, load)
    assert {violation.kind for violation in verdict.violations} == {"final_unread", "final_unlisted"}
    writes = [one for one in history.operations() if one.kind in (Kind.PUT, Kind.DELETE)]
    assert writes
    assert {(one.outcome, one.error) for one in writes} == {(Outcome.UNKNOWN, "timeout")}


async def test_a_cancelled_run_leaves_its_writes_unknown() -> None:
    sent = asyncio.Event()

    class Silent(ModelStore):
        async def _wire(self, *, write: bool) -> None:
            if write:
                sent.set()
                await asyncio.Event().wait()

    workload = Workload(Silent(1), QUICK)
    running = asyncio.create_task(workload.run())
    async with asyncio.timeout(60):
        await sent.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    cut = [one for one in workload.history.operations() if one.error == "CancelledError"]
    assert {one.outcome for one in cut if one.kind is Kind.PUT} == {Outcome.UNKNOWN}


async def test_an_error_outside_the_tree_ends_the_run() -> None:
    class Broken(ModelStore):
        async def get(self, namespace: str, path: str) -> bytes:
            raise RuntimeError("a fault of the program")

    workload = Workload(Broken(1), QUICK)
    with pytest.raises(ExceptionGroup) as caught:
        await workload.run()
    assert caught.group_contains(RuntimeError, match="a fault of the program")


# -- stores that lie -----------------------------------------------------------------------------------------------
class LosesWrites(ModelStore):
    def apply_put(self, path: str, content: bytes) -> int:
        if self.source.random() < 0.02:
            self.version += 1
            return self.version
        return super().apply_put(path, content)


class ReadsStale(ModelStore):
    old: dict[str, tuple[int, bytes]]

    def apply_put(self, path: str, content: bytes) -> int:
        if path in self.files and self.source.random() < 0.5:
            self.old = {**getattr(self, "old", {}), path: self.files[path]}
        return super().apply_put(path, content)

    def look(self, path: str) -> tuple[int, bytes]:
        if path in getattr(self, "old", {}) and path in self.files and self.source.random() < 0.1:
            return self.old[path]
        return super().look(path)


class Resurrects(ModelStore):
    def apply_delete(self, path: str) -> int:
        kept = self.files.get(path)
        version = super().apply_delete(path)
        if kept is not None and self.source.random() < 0.5:
            self.files[path] = kept
        return version


class AppliesTwice(ModelStore):
    """A6: a retry that is not recognised; the second effect has a version of its own."""

    async def put(self, namespace: str, path: str, content: bytes) -> FileVersion:
        self.apply_put(path, content)
        for _ in range(6):
            await asyncio.sleep(0)
        return await super().put(namespace, path, content)


class FlipsBytes(ModelStore):
    def look(self, path: str) -> tuple[int, bytes]:
        version, content = super().look(path)
        if content and self.source.random() < 0.01:
            at = self.source.randrange(len(content))
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        return version, content


class AppliesWhatItRefused(ModelStore):
    def apply_put(self, path: str, content: bytes) -> int:
        version = super().apply_put(path, content)
        if self.source.random() < 0.05:
            raise NoSpace("nothing was stored, it says")
        return version


class ListsTooFew(ModelStore):
    def page(self, prefix: str) -> list[str]:
        return [path for path in super().page(prefix) if self.source.random() > 0.02]


class VersionsFall(ModelStore):
    def apply_put(self, path: str, content: bytes) -> int:
        version = super().apply_put(path, content)
        if self.source.random() < 0.05:
            version -= 500
            self.files[path] = (version, content)
        return version


class MixesUpFiles(ModelStore):
    def look(self, path: str) -> tuple[int, bytes]:
        return super().look(self.source.choice(sorted(self.files)) if self.source.random() < 0.02 else path)


class LosesBytes(ModelStore):
    def look(self, path: str) -> tuple[int, bytes]:
        if self.source.random() < 0.01:
            raise DataLost("no location is left")
        return super().look(path)


@pytest.mark.parametrize(
    ("liar", "kinds"),
    [
        (LosesWrites, {"lost_write", "stale_read", "deleted_nothing", "list_missed", "resurrection"}),
        (ReadsStale, {"stale_read", "resurrection", "applied_twice"}),
        (Resurrects, {"resurrection"}),
        (AppliesTwice, {"applied_twice"}),
        (FlipsBytes, {"corrupt_bytes"}),
        (AppliesWhatItRefused, {"failed_write_visible"}),
        (ListsTooFew, {"list_missed"}),
        (VersionsFall, {"version_order"}),
        (MixesUpFiles, {"corrupt_bytes"}),
        (LosesBytes, {"alarm"}),
    ],
)
async def test_a_store_that_lies_is_caught(liar: type[ModelStore], kinds: set[str]) -> None:
    verdict, _ = await judged(liar(3, trouble=0.05))
    found = {violation.kind for violation in verdict.violations}
    assert found & kinds, str(verdict)
    for violation in verdict.violations:
        assert 1 <= len(violation.story) <= 12, str(violation)


# -- payloads and plans --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size_bytes", [0, 1, 50, 63, 64, 65, 200, 70_000, 2_000_000])
def test_a_payload_is_its_own_witness(size_bytes: int) -> None:
    content = payload(7, "d/ä", 12, size_bytes)
    assert len(content) == size_bytes
    assert content == payload(7, "d/ä", 12, size_bytes)
    assert flaw(content, "d/ä") == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content[:5000] + b"?" + content[5001:], "byte 5000 of write 12 differs"),
        (lambda content: content[:-1], "write 12 is 9000 bytes long, read were 8999"),
        (lambda _: payload(7, "d/b", 13, 9000), "these are bytes of d/b, write 13"),
        (lambda content: bytes(9000), "no payload begins like this"),
    ],
    ids=["flipped", "cut", "of another file", "zeros"],
)
def test_a_flawed_payload_says_so(change: object, told: str) -> None:
    assert callable(change)
    assert flaw(change(payload(7, "d/a", 12, 9000)), "d/a") == told


def test_the_seed_decides_what_clients_do() -> None:
    first = list(islice(steps(QUICK, 3), 500))
    assert first == list(islice(steps(QUICK, 3), 500))
    assert first != list(islice(steps(QUICK, 4), 500))
    numbers = [
        number for client in range(8) for step in islice(steps(QUICK, client), 500) for _, number, _ in step.files
    ]
    written = [number for number in numbers if number]
    assert len(written) == len(set(written))


def test_errors_that_promise_nothing_leave_a_write_unknown() -> None:
    failed = {code for code, cls in BY_CODE.items() if write_outcome(cls("said")) is Outcome.FAILED}
    assert failed >= {cls.code for cls in (CatalogDown, Conflict, NoSpace, NotFound, Unavailable)}
    assert not failed & {cls.code for cls in (OutcomeUnknown, Forbidden, DataLost, CopypoolError)}
