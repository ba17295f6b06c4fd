"""Who this node is in its cluster: made once by joining, kept in `<state_dir>/identity` (mode 0600).

The nonce is written before the first join request, so a join whose reply was lost is repeated as the same join.
"""

from __future__ import annotations

import os
import threading

import msgspec

from copypool.protocol.errors import BrokenInvariant
from copypool_node.disk import Disk, Missing, WriteFailed

_LIMIT_BYTES = 64 * 1024


class Identity(msgspec.Struct):
    """Contents of the identity file. `node_id` is -1 until the node has joined."""

    join_nonce: bytes
    cluster_id: bytes = b""
    node_id: int = -1
    credential: bytes = b""
    command_key: bytes = b""
    #: Names of volumes that were mounted once: a directory without a label is a disk that is not there, not a new one.
    mounted: list[str] = []

    @property
    def joined(self) -> bool:
        """Whether the cluster knows this node."""
        return self.node_id >= 0

    @property
    def authorization(self) -> str:
        """Header value that proves this node to coordinators."""
        return f"Node {self.node_id}:{self.credential.hex()}"


def has_joined(state_dir: str, disk: Disk) -> bool:
    """Whether the node of this state folder is known to its cluster. Blocking; changes nothing."""
    return joined_identity(state_dir, disk) is not None


def joined_identity(state_dir: str, disk: Disk) -> Identity | None:
    """The identity of a node that has joined; None while it has not. Blocking; changes nothing."""
    try:
        identity = _decoded(os.path.join(state_dir, "identity"), disk)
    except Missing:
        return None
    return identity if identity.joined else None


def _decoded(path: str, disk: Disk) -> Identity:
    content = disk.load(path, _LIMIT_BYTES)
    try:
        return msgspec.json.decode(content, type=Identity)
    except msgspec.MsgspecError as exc:
        raise BrokenInvariant(
            f"{path} is not an identity file ({exc}): restore it, or join as a new node with a new state_dir"
        ) from exc


class IdentityStore:
    """Reads and replaces the identity file. Blocking; called before the node serves."""

    def __init__(self, state_dir: str, disk: Disk) -> None:
        self._path = os.path.join(state_dir, "identity")
        self._state_dir = state_dir
        self._disk = disk
        self._lock_fd: int | None = None
        self._given_back = False
        self._guard = threading.Lock()  # of the two above; never held over a call to the disk

    def lock(self) -> bool:
        """Make the state folder this process's own, until `unlock` or its end; False when another process has it.

        Two processes of one node would end each other's sessions for ever.
        """
        if self._lock_fd is None:
            self._make_folder()
            locked = self._disk.lock(os.path.join(self._state_dir, "lock"))
            with self._guard:
                self._lock_fd = locked
                late = self._given_back
            if late:  # the node ended while this thread was at the disk
                self.unlock()
        return self._lock_fd is not None

    def unlock(self) -> None:
        """Let another process have the state folder, for good: a `lock` that is under way will not keep it either."""
        with self._guard:
            self._given_back = True
            lock_fd, self._lock_fd = self._lock_fd, None
        if lock_fd is not None:
            self._disk.close(lock_fd)

    def load(self, fresh_nonce: bytes) -> Identity:
        """The stored identity; a new one with this nonce, stored durably, when there is none."""
        self._make_folder()
        try:
            return _decoded(self._path, self._disk)
        except Missing:
            identity = Identity(fresh_nonce)
            self._sync_folders()
            self.store(identity)
            return identity

    def _folders(self) -> list[str]:
        """The state folder and all above it, but for the root; the highest first."""
        folders: list[str] = []
        at = os.path.abspath(self._state_dir)
        while at != os.path.dirname(at):
            folders.append(at)
            at = os.path.dirname(at)
        return folders[::-1]

    def _make_folder(self) -> None:
        for folder in self._folders():
            if self._disk.make_directory(folder):
                self._disk.sync_directory(os.path.dirname(folder))

    def _sync_folders(self) -> None:
        """A start that died may have made any of them, and not have come to syncing it."""
        for folder in self._folders():
            try:
                self._disk.sync_directory(os.path.dirname(folder))
            except WriteFailed as exc:
                if not isinstance(exc.__cause__, PermissionError):  # nothing of ours is made where we may not look
                    raise

    def store(self, identity: Identity) -> None:
        """Durable when it returns."""
        self._disk.replace(self._path, msgspec.json.encode(identity))
