"""What the members of a drill's cluster prove themselves with: secrets, and certificates of an authority of their own.

Files below one folder, readable by the processes in the containers alone. Blocking; needs root.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from copypool.dev import certificates
from copypool.protocol.tokens import new_token
from copypool.tls import TlsFiles
from drills.layout import USER_ID, Layout

#: Whose certificate this machine has.
OPERATOR = "operator"
#: Certificates are valid from long ago on: a clock that is an hour back is a wrong clock, and makes none invalid.
_BEFORE = timedelta(days=1)
_AFTER = timedelta(days=2)


def write_secrets(folder: Path) -> None:
    """Make a folder with the cluster's secrets."""
    contents = {
        "master-secret": secrets.token_hex(32),
        "join-token": secrets.token_hex(32),
        "admin-token": new_token(secrets.token_bytes(24)),
    }
    _write(folder, {name: f"{content}\n".encode() for name, content in contents.items()})


def write_certificates(folder: Path, layout: Layout) -> TlsFiles:
    """Make a folder with each member's certificate in a folder of its own; the files of this machine."""
    now = datetime.now(UTC)
    authority = certificates.make_authority(folder.parent.name, now - _BEFORE)
    hosts = {member.name: [member.name, member.address] for member in layout.members}
    for name, names in {**hosts, OPERATOR: [OPERATOR]}.items():
        pair = certificates.issue(authority, name, names, now + _AFTER, not_before=now - _BEFORE)
        contents = {"ca.pem": authority.certificate, "cert.pem": pair.certificate, "key.pem": pair.key}
        _write(folder / name, contents)
    mine = folder / OPERATOR
    return TlsFiles(str(mine / "ca.pem"), str(mine / "cert.pem"), str(mine / "key.pem"))


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.mkdir(mode=0o700, parents=True)
    os.chown(folder, USER_ID, USER_ID)
    for name, content in contents.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        os.chown(path, USER_ID, USER_ID)
