"""Throwaway TLS files for tests: authorities, and certificates as they should be or as they should not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from copypool.dev.certificates import LOOPBACK, Pair, issue, make_authority
from copypool.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files of one certificate and the authority that signed it."""

    authority: Path
    certificate: Path
    key: Path

    @property
    def files(self) -> TlsFiles:
        """As `copypool.tls` takes them."""
        return TlsFiles(str(self.authority), str(self.certificate), str(self.key))

    @property
    def section(self) -> dict[str, object]:
        """As a server's settings take them."""
        return {"ca_file": str(self.authority), "cert_file": str(self.certificate), "key_file": str(self.key)}


class Authority:
    """A certificate authority in `directory`; blocking."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._pair = make_authority(name, datetime.now(UTC), days=2)
        self.certificate = directory / f"{name}.pem"
        self.certificate.write_bytes(self._pair.certificate)

    def pair(
        self,
        name: str,
        *,
        hosts: Sequence[str] = LOOPBACK,
        ends_in: timedelta = timedelta(days=2),
        begins_in: timedelta = timedelta(days=-1),
        calls: bool = True,
    ) -> Pair:
        """A certificate for loopback, good for servers and clients, unless told otherwise."""
        now = datetime.now(UTC)
        return issue(self._pair, name, hosts, now + ends_in, not_before=now + begins_in, calls=calls)

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = LOOPBACK,
        ends_in: timedelta = timedelta(days=2),
        begins_in: timedelta = timedelta(days=-1),
        calls: bool = True,
    ) -> Certificate:
        """The same, as files `<name>.pem` and `<name>.key`; those of before are replaced."""
        pair = self.pair(name, hosts=hosts, ends_in=ends_in, begins_in=begins_in, calls=calls)
        found = Certificate(self.certificate, self._directory / f"{name}.pem", self._directory / f"{name}.key")
        found.certificate.write_bytes(pair.certificate)
        found.key.write_bytes(pair.key)
        return found


def replace(certificate: Certificate, pair: Pair) -> None:
    """Put other content in the files' place: each is renamed over, as certificate managers do it."""
    for path, content in ((certificate.key, pair.key), (certificate.certificate, pair.certificate)):
        draft = path.with_name(path.name + ".new")
        draft.write_bytes(content)
        draft.rename(path)
