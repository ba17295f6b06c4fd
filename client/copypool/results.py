"""What the SDK's calls return."""

from __future__ import annotations

import msgspec

from copypool.protocol.api import AckRule, Receipt
from copypool.protocol.errors import CopypoolError


class FileVersion(msgspec.Struct, frozen=True):
    """A stored version: durable and visible by the time it is returned."""

    namespace: str
    path: str
    version: int
    size: int  #: bytes
    digest: str  #: `blake3:<hex>`
    volumes: list[str]  #: names of the volumes that hold its last record, fsync'd
    ack: AckRule  #: the ack rule that was met
    replayed: bool  #: an earlier attempt of this very write had been applied already

    @classmethod
    def of(cls, namespace: str, receipt: Receipt) -> FileVersion:
        """From a node's receipt."""
        return cls(
            namespace=namespace,
            path=receipt.path,
            version=receipt.version,
            size=receipt.size,
            digest=receipt.digest,
            volumes=receipt.volumes,
            ack=receipt.ack,
            replayed=receipt.replayed,
        )


class Failure(msgspec.Struct, frozen=True):
    """One file of a bulk call that was not transferred, and why."""

    path: str
    error: CopypoolError


class BulkResult(msgspec.Struct):
    """Sum of a bulk call."""

    files: int = 0  #: transferred
    bytes: int = 0
    failed: list[Failure] = []  #: at most `FAILURES_MAX` of them
    failures: int = 0  #: all of them
    skipped: list[str] = []  #: local entries that are no files: directory links, sockets, broken links

    def add_failure(self, path: str, error: CopypoolError) -> None:
        """Note one failure; the list stays bounded, the count goes on."""
        self.failures += 1
        if len(self.failed) < FAILURES_MAX:
            self.failed.append(Failure(path, error))

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for was transferred."""
        return not self.failures and not self.skipped


FAILURES_MAX = 1000
