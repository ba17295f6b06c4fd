"""Each way of writing to the disk, broken off at each of its system calls, in each way (`kit.crash_stories`).

SQLite's way: fail the Nth call for N = 1, 2, 3 ... until the story has no Nth call, once and for ever; kill the process
there, in the middle of a write; cut the power there. Then start anew and judge: what was acknowledged is whole, torn
tails are cut, nothing else is claimed. A run by `make test` takes every 61st call, each fault other ones; `make slow`
takes them all.
"""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.crash_points import FAULTS, break_off
from kit.crash_stories import STORIES

STRIDE = 61
FIRST_MAX = 6  #: every story has more calls
CALLS_MAX = 600  #: a story with more system calls does not end


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("copypool_node.keeper.RETRY_S", 0.05)
    monkeypatch.setattr("copypool_node.node.VOLUME_RETRY_S", 0.05)
    monkeypatch.setattr("copypool_node.node.RETRY_S", 0.05)
    monkeypatch.setattr("copypool_node.pull.BACKOFF_MIN_S", 0.01)


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: power cuts are played here, and thousands of real fsyncs take minutes."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="copypool-crash-", dir=memory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


async def broken_off_at_each(folder: Path, story: str, fault: str, first: int, stride: int) -> int:
    """How many calls were failed, from the `first` one on in steps of `stride`."""
    for done, nth in enumerate(range(first, CALLS_MAX, stride)):
        try:
            if not await break_off(folder / "stage", story, fault, nth):
                return done
        except BaseException as exc:
            exc.add_note(f"{story}: {fault} at call {nth}")
            raise
    raise AssertionError(f"{story} has more than {CALLS_MAX} calls")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("story", STORIES)
async def test_a_story_broken_off_at_some_calls(memory_folder: Path, story: str, fault: str) -> None:
    first = 1 + (zlib.crc32(story.encode()) + FAULTS.index(fault)) % FIRST_MAX
    assert await broken_off_at_each(memory_folder, story, fault, first, STRIDE) >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("story", STORIES)
async def test_a_story_broken_off_at_every_call(memory_folder: Path, story: str, fault: str) -> None:
    assert await broken_off_at_each(memory_folder, story, fault, 1, 1) >= 5
