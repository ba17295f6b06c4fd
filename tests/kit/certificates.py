"""Throwaway TLS files for tests, made with the `openssl` program: an authority and certificates for loopback."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files of one certificate and the authority that signed it."""

    authority: Path
    certificate: Path
    key: Path


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


class Authority:
    """A certificate authority in `directory`; blocking."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._key = directory / f"{name}.key"
        self.certificate = directory / f"{name}.pem"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(self._key), "-out", str(self.certificate), "-days", "2", "-subj", f"/CN={name}"),
        )

    def issue(self, name: str) -> Certificate:
        """A certificate for localhost and 127.0.0.1, good for servers and clients."""
        key = self._directory / f"{name}.key"
        request = self._directory / f"{name}.csr"
        certificate = self._directory / f"{name}.pem"
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(_NAMES)
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}"),
        )
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-out", str(certificate), "-days", "2", "-extfile", str(extensions)),
        )
        return Certificate(self.certificate, certificate, key)
