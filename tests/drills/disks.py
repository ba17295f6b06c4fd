"""A disk of its own for a node: an ext4 file system in a file, mounted by loop. Blocking; needs root.

What is done to the mount is seen inside the container at once: both look at the same file system.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

from drills.layout import USER_ID

SIZE_BYTES = 8 << 30  #: sparse: it takes what is written
PROBE_BYTES = 8 << 20  #: more than a node frees between two looks at a full disk
#: ext4's own "go down without writing the journal out" (FS_IOC_SHUTDOWN): from then on everything fails with EIO.
_SHUTDOWN = 0x8004587D
_SHUTDOWN_NO_LOG = struct.pack("I", 2)


class Disk:
    """One file system. `path` is the mount, `data` the volume's folder in it."""

    def __init__(self, folder: Path, name: str, size_bytes: int = SIZE_BYTES) -> None:
        self.path = folder / f"{name}.mount"
        self.data = self.path / "data"
        self._image = folder / f"{name}.img"
        self._size_bytes = size_bytes

    # -- life ---------------------------------------------------------------------------------
    def make(self) -> None:
        """An empty, mounted file system with an empty folder for the volume."""
        with self._image.open("wb") as file:
            file.truncate(self._size_bytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", str(self._image))
        self.path.mkdir()
        self.mount()
        self.data.mkdir(mode=0o700)
        os.chown(self.data, USER_ID, USER_ID)

    def mount(self) -> None:
        """Mount it; the journal is replayed if it went down.

        On a device of its own: the name space of some other process may still hold the file system as it was before,
        with its error, and the same device would give that one again. It writes nothing any more.
        """
        subprocess.run(["e2fsck", "-p", str(self._image)], capture_output=True, check=False)
        device = _run("losetup", "--find", "--show", str(self._image)).strip()
        try:
            _run("mount", "-o", "errors=remount-ro", device, str(self.path))
        finally:
            _run("losetup", "--detach", device)  # goes with the mount

    def unmount(self) -> None:
        """Unmount it wherever the host has it; nothing to do when it is not mounted."""
        if os.path.ismount(self.path):
            _run("umount", str(self.path))

    def remove(self) -> None:
        """Unmount and delete."""
        self.unmount()
        self._image.unlink(missing_ok=True)

    # -- what can befall it -------------------------------------------------------------------
    def fail_to_read_only(self) -> None:
        """ext4 meets an error of its own and makes itself read-only, for every process at once, until mounted anew."""
        device = Path(_run("findmnt", "--noheadings", "--output", "SOURCE", str(self.path)).strip()).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("drill")

    def shut_down(self) -> None:
        """All I/O fails with EIO from now on, and what was not fsync'd is gone, until it is mounted anew."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _SHUTDOWN_NO_LOG)
        finally:
            os.close(descriptor)

    def fill(self) -> None:
        """Take every free byte."""
        with suppress(OSError), (self.path / "ballast").open("wb") as file:
            free = os.statvfs(self.path)
            os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - (1 << 20)))
        with suppress(OSError), (self.path / "ballast").open("ab", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass

    def refusal(self) -> int:
        """The error number that a new file of `PROBE_BYTES` meets; 0 when there is room and it can be written."""
        probe = self.path / "probe"
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, PROBE_BYTES)
                os.fsync(file.fileno())
        except OSError as error:
            return error.errno or 0
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        return 0

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.path / "ballast").unlink(missing_ok=True)

    def wipe(self) -> None:
        """Nothing is left of the volume: an empty folder."""
        shutil.rmtree(self.data)
        self.data.mkdir(mode=0o700)
        os.chown(self.data, USER_ID, USER_ID)

    def keep(self, name: str) -> None:
        """Remember the volume as it is now."""
        _run("cp", "--archive", "--sparse=auto", str(self.data), str(self.path / name))

    def give_back(self, name: str) -> None:
        """The volume is as it was when it was kept."""
        shutil.rmtree(self.data)
        (self.path / name).rename(self.data)

    def forget(self, name: str) -> None:
        """Drop what was kept."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    # -- its files ----------------------------------------------------------------------------
    def extents(self) -> list[Path]:
        """The extent files, largest first."""
        found = {path: path.stat().st_size for path in self.data.glob("extents/*/*.ext")}
        return sorted(found, key=lambda path: (-found[path], path.name))

    def flip(self, source: random.Random, files: int, bits: int) -> list[str]:
        """Flip some bits in some files; the names of those files."""
        victims = _some(source, self.extents(), files)
        for path in victims:
            with path.open("r+b") as file:
                size_bytes = path.stat().st_size
                for _ in range(bits):
                    at = source.randrange(size_bytes)
                    file.seek(at)
                    (byte,) = file.read(1)
                    file.seek(at)
                    file.write(bytes([byte ^ 1 << source.randrange(8)]))
                file.flush()
                os.fsync(file.fileno())
        return [path.name for path in victims]

    def delete(self, source: random.Random, files: int) -> list[str]:
        """Delete some files; their names."""
        victims = _some(source, self.extents(), files)
        for path in victims:
            path.unlink()
        return [path.name for path in victims]


def _some(source: random.Random, files: list[Path], count: int) -> list[Path]:
    filled = [path for path in files if path.stat().st_size]
    return source.sample(filled, min(count, len(filled)))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
