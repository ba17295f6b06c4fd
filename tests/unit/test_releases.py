"""Which older release the upgrade drill begins with, and what it can be told."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from drills.releases import NoSuchCommit, Release, older_commit


def git(root: Path, *command: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *command], cwd=root, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three commits."""
    root = tmp_path / "origin"
    root.mkdir()
    git(root, "init", "--quiet")
    for number in range(3):
        git(root, "commit", "--quiet", "--allow-empty", "--message", str(number))
    return root


def test_without_a_tag_it_is_the_first_parent(repository: Path) -> None:
    assert older_commit("", repository) == git(repository, "rev-parse", "HEAD^")


def test_the_newest_tag_before_today(repository: Path) -> None:
    git(repository, "tag", "v1", "HEAD~2")
    git(repository, "tag", "v2", "HEAD")
    assert older_commit("", repository) == git(repository, "rev-parse", "HEAD~2"), "today's own tag is no older one"


def test_the_one_that_is_asked_for(repository: Path) -> None:
    assert older_commit("HEAD~2", repository) == git(repository, "rev-parse", "HEAD~2")


@pytest.mark.parametrize("asked", ["", "HEAD~2"])
def test_a_shallow_clone_is_told_how_to_get_it(repository: Path, asked: str) -> None:
    shallow = repository.parent / "shallow"
    git(repository.parent, "clone", "--quiet", "--depth", "1", repository.as_uri(), str(shallow))
    with pytest.raises(NoSuchCommit, match=r"git fetch --unshallow --tags.*UPGRADE_FROM"):
        older_commit(asked, shallow)


def test_an_older_release_is_not_told_of_newer_settings(tmp_path: Path) -> None:
    config = tmp_path / "node" / "copypool_node" / "config.py"
    config.parent.mkdir(parents=True)
    config.write_text("class NodeConfig:\n    name: str\n    limits: Limits\n    heartbeat_s: float\n")
    (tmp_path / "pyproject.toml").write_text('[project.scripts]\ncopypool-node = "x:y"\n')
    release = Release("older", "tag", tmp_path)
    told = release.understood("node", 'name = "n1"\nzone = "z"\nlimits = { heartbeat_s = 1.0, idle_seal_s = 6.0 }\n')
    assert tomllib.loads(told) == {"name": "n1", "limits": {"heartbeat_s": 1.0}}
    assert release.has_program("copypool-node")
    assert not release.has_program("copypool-node-stop")
