"""The releases that a cluster in containers can run: today's images, and those of an older commit.

An older release understands older settings, and may not have every program: what it has is read from its source.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copypool.toml_text import to_toml

ROOT = Path(__file__).parents[2]
TAG = os.environ.get("TAG", "local")
BUILD_TIMEOUT_S = 900
GIT_TIMEOUT_S = 60
#: Where the settings of a coordinator or a node are declared.
_SETTINGS = ("{kind}/copypool_{kind}/config.py", "client/copypool/serving/*.py")


@dataclass(frozen=True, slots=True)
class Release:
    """A version of the images."""

    name: str
    tag: str
    source: Path  #: its client, node, coordinator and pyproject.toml

    def image(self, kind: str) -> str:
        """The image of a kind of member."""
        return f"copypool-{kind}:{self.tag}"

    def has_program(self, name: str) -> bool:
        """Whether its images have a program of its own by that name."""
        return name in tomllib.loads((self.source / "pyproject.toml").read_text())["project"]["scripts"]

    def understood(self, kind: str, settings: str) -> str:
        """Settings without those that this release does not know yet."""
        patterns = [pattern.format(kind=kind) for pattern in _SETTINGS]
        declared = "\n".join(path.read_text() for pattern in patterns for path in sorted(self.source.glob(pattern)))
        return to_toml(_known(tomllib.loads(settings), set(re.findall(r"\w+", declared))))


def _known(settings: Mapping[str, Any], words: set[str]) -> dict[str, Any]:
    return {
        key: _known(value, words) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key in words
    }


CURRENT = Release("current", TAG, ROOT)


class NoSuchCommit(Exception):
    """The repository here does not hold the commit to begin with; the message says what to do."""


def older_commit(asked: str, root: Path = ROOT) -> str:
    """The commit to upgrade from: `asked`, else the newest tag before HEAD, else HEAD's first parent.

    Raises:
        NoSuchCommit: it is not here.
    """
    wanted = asked or _git(root, "describe", "--tags", "--abbrev=0", "HEAD^") or "HEAD^"
    found = _git(root, "rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}")
    if not found:
        raise NoSuchCommit(
            f"there is no commit {wanted} in {root} to upgrade from: a shallow clone gets it by `git fetch --unshallow "
            "--tags`, and UPGRADE_FROM=<commit> names another one"
        )
    return found


def older_release(commit: str, folder: Path) -> Release:
    """Put a commit's source into a folder and build its images, with today's Dockerfiles where it has none. Blocks."""
    archive = subprocess.Popen(
        [*_GIT, "archive", commit, "LICENSE", "README.md", "pyproject.toml", "client", "node", "coordinator"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    with archive:
        subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True, timeout=GIT_TIMEOUT_S)
    if archive.returncode:
        raise RuntimeError(f"git archive {commit} ended with {archive.returncode}")
    tag = f"{TAG}-older"
    subprocess.run(
        [".ci/build-images", str(Path(sys.prefix)), str(folder)],
        cwd=ROOT,
        env={**os.environ, "TAG": tag},
        check=True,
        timeout=BUILD_TIMEOUT_S,
    )
    return Release(commit[:10], tag, folder)


#: Root drills on the clone of somebody else.
_GIT = ["git", "-c", "safe.directory=*"]


def _git(root: Path, *command: str) -> str:
    """What git answers; empty when it refuses."""
    done = subprocess.run(
        [*_GIT, *command], cwd=root, capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT_S
    )
    return done.stdout.strip() if not done.returncode else ""
