"""A file system whose power can be cut: what no fsync covered is really lost.

    with PowerSupply(folder, "ext4") as disk:
        (disk.path / "file").write_bytes(b"...")
        process.send_signal(signal.SIGSTOP)
        disk.cut()                # from now on every call fails with EIO
        process.kill()
        disk.restore()            # after who used it has ended: mounted anew, from what its journal and blocks hold

Whoever uses the disk is stopped first, as a machine stops without power: an fsync that is under way while the switch is
thrown may report success over lost bytes (seen with ext4 and xfs of Linux 6.18), and must not tell anybody.

A loop device on a sparse file, and the kernel's own switch for such tests, FS_IOC_SHUTDOWN without a flush of the
log: dirty pages and the running transaction are dropped. Needs root, and mkfs of the kind; says so when it cannot.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

FsKind = Literal["ext4", "xfs"]
FS_KINDS: tuple[FsKind, ...] = ("ext4", "xfs")

_FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_SIZE_BYTES = 1 << 30
_TOOL_S = 60.0
_CANARY = b"canary" * 10_000
#: ext4 flushes a file that replaces another one, as a courtesy to programs that do not fsync: not here.
_OPTIONS: dict[FsKind, str] = {"ext4": "noatime,noauto_da_alloc,commit=300", "xfs": "noatime"}
_PACKAGES = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "losetup": "mount", "mount": "mount", "umount": "mount"}


def missing() -> list[str]:
    """What this machine lacks for cutting power, as sentences; empty: nothing."""
    lacks = [f"no {tool} on PATH (Debian: {package})" for tool, package in _PACKAGES.items() if not shutil.which(tool)]
    if os.geteuid() != 0:
        lacks.append("only root may mount")
    if not Path("/dev/loop-control").exists():
        lacks.append("no loop devices (/dev/loop-control)")
    return lacks


def private_mounts() -> None:
    """Move this process to a mount namespace of its own. Before it has threads; without root nothing happens.

    Who clones the namespace while a disk is mounted there (a container that starts, `ip netns exec`) keeps its file
    system alive beyond the umount, and then a new mount finds the one whose power was cut.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0 and libc.unshare(_CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)


class PowerSupply:
    """One mounted file system on a loop device. Blocking; everything is undone at the end of the context."""

    def __init__(self, folder: Path, kind: FsKind, name: str = "disk") -> None:
        self.kind = kind
        self.path = folder / f"{name}.mount"
        self._canary = self.path / "never-synced"
        self._image = folder / f"{name}.image"
        self._device = ""
        self._mounted = False

    def __enter__(self) -> Self:
        lacks = missing()
        if lacks:
            raise RuntimeError(f"the power cannot be cut here: {'; '.join(lacks)}")
        self.path.mkdir()
        try:
            with self._image.open("wb") as image:
                image.truncate(_SIZE_BYTES)
            _run(f"mkfs.{self.kind}", "-q", str(self._image))
            self._device = _run("losetup", "--find", "--show", str(self._image)).strip()
            self._mount()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _mount(self) -> None:
        _run("mount", "-t", self.kind, "-o", _OPTIONS[self.kind], self._device, str(self.path))
        self._mounted = True

    def cut(self) -> None:
        """The power is off: nothing more is written, what was not fsync'd is gone."""
        self._canary.write_bytes(_CANARY)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def restore(self) -> bool:
        """The power is back: mounted anew. Nobody may have a file of it open. Whether the cut has lost what was written
        just before it and not synced, as it should."""
        _run("umount", str(self.path))
        self._mounted = False
        self._mount()
        lost = not self._canary.exists() or self._canary.read_bytes() != _CANARY
        self._canary.unlink(missing_ok=True)
        return lost

    def _end(self) -> None:
        # Whatever fails here, the rest is still undone.
        if self._mounted:
            self._mounted = subprocess.run(["umount", str(self.path)], check=False, timeout=_TOOL_S).returncode != 0
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], check=False, timeout=_TOOL_S)
        if self._device:
            subprocess.run(["losetup", "--detach", self._device], check=False, timeout=_TOOL_S)
        self._image.unlink(missing_ok=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TOOL_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
