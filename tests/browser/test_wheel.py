"""What is installed from a wheel has the dashboard's files."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from copypool_coordinator import dashboard

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_every_file_of_the_page(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        check=True,
        timeout=100,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"copypool_coordinator/ui/{file.name}" for file in dashboard._FOLDER.iterdir()} <= names
