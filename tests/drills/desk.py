"""An administrator's desk in a drill: a folder, a profile, and the command line of any release. Blocking."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from copypool.toml_text import Value, to_toml
from drills.containers import Containers
from drills.layout import USER_ID
from drills.releases import Release

COMMAND_TIMEOUT_S = 60
_DESK = "/desk"  #: the folder, where a command runs
_PROFILE = "profile.toml"


class Desk:
    """Runs commands in the cluster's network; `folder` is their working folder."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self.folder = containers.folder / "desk"
        self.folder.mkdir(mode=0o700)
        profile: dict[str, Value] = {
            "coordinators": [member.url for member in containers.layout.of("coordinator")],
            "token": containers.admin_token,
        }
        if containers.files is not None:
            shutil.copy(containers.files.authority, self.folder / "ca.pem")
            profile["ca_file"] = "ca.pem"
        (self.folder / _PROFILE).touch(mode=0o600)
        (self.folder / _PROFILE).write_text(to_toml(profile))
        for path in (self.folder, *self.folder.iterdir()):
            os.chown(path, USER_ID, USER_ID)

    def put_down(self, name: str, content: bytes) -> Path:
        """Put a file on the desk."""
        path = self.folder / name
        path.write_bytes(content)
        os.chown(path, USER_ID, USER_ID)
        return path

    def copypool(self, release: Release, *arguments: str) -> str:
        """Run `copypool` of a release as the administrator; what it printed.

        Raises:
            RuntimeError: it ended with another exit code than 0; with what it said.
        """
        command = ["docker", "run", "--rm", "--network", self._containers.network, "--user", f"{USER_ID}:{USER_ID}"]
        command += ["--volume", f"{self.folder}:{_DESK}", "--workdir", _DESK, "--entrypoint", "copypool"]
        command += ["--env", f"COPYPOOL_PROFILE={_DESK}/{_PROFILE}", release.image("coordinator"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
        if done.returncode:
            said = f"{done.stdout}{done.stderr}".strip()
            raise RuntimeError(f"copypool {' '.join(arguments)} of {release.name}: {done.returncode}: {said}")
        return done.stdout
