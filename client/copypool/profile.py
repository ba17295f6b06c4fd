"""Which cluster to talk to and as whom: a small TOML file.

    coordinators = ["https://10.0.0.1:7400", "https://10.0.0.2:7400"]
    token_file = "token"        # relative to this file; or: token = "cpt_..."
    ca_file = "ca.pem"          # optional, relative to this file
    cert_file = "me.pem"        # optional, with key_file: where a proxy in front of the cluster asks for one
    key_file = "me.key"
    namespace = "default"       # optional: used when a command or call names none

Looked for in this order: the path given, `$COPYPOOL_PROFILE`, `~/.config/copypool/profile.toml` (or under
`$XDG_CONFIG_HOME`), and last `.dev/profile.toml` in the current folder, which `copypool dev up` writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from copypool.protocol.errors import Invalid
from copypool.threads import in_thread
from copypool.tls import TlsFiles

VARIABLE = "COPYPOOL_PROFILE"
DEV_PROFILE = Path(".dev") / "profile.toml"


class Profile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One cluster and one token."""

    coordinators: list[str]
    token: str = ""
    token_file: str = ""  #: file whose first line is the token; read again when the token is refused
    ca_file: str = ""  #: PEM file of the authority that signed the servers' certificates
    cert_file: str = ""  #: PEM file of this client's certificate, where one is asked for
    key_file: str = ""  #: its private key
    server_name: str = ""  #: name in the servers' certificates, if it is not the host that is called
    namespace: str = ""

    @property
    def tls(self) -> TlsFiles | None:
        """For `copypool.tls`; None: the system's authorities, and no certificate of one's own."""
        if not (self.ca_file or self.cert_file or self.key_file or self.server_name):
            return None
        return TlsFiles(self.ca_file, self.cert_file, self.key_file, self.server_name)


def find_profile(given: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> Path:
    """The profile file to use; `Invalid` when there is none, saying where it was looked for."""
    if given is not None:
        return Path(given)
    if environment.get(VARIABLE):
        return Path(environment[VARIABLE])
    home = Path(environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", "~")).expanduser() / ".config")
    candidates = [home / "copypool" / "profile.toml", DEV_PROFILE]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise Invalid(
        f"no profile: neither ${VARIABLE}, {candidates[0]} nor {candidates[1]} exists; "
        "`copypool dev up` makes a cluster and its profile"
    )


def load_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile; file names in it become absolute, and the token is read from its file.

    `Invalid` says what is wrong with it.
    """
    place = Path(path)
    try:
        profile = msgspec.toml.decode(place.read_bytes(), type=Profile)
        token = profile.token
        if profile.token_file:
            token = _read_token(place.parent / profile.token_file)
    except OSError as exc:
        raise Invalid(f"the profile {os.fspath(place)!r} cannot be read: {exc}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Invalid(f"the profile {os.fspath(place)!r} is malformed: {exc}") from exc
    if bool(profile.cert_file) != bool(profile.key_file):
        raise Invalid(f"the profile {os.fspath(place)!r} is malformed: cert_file and key_file go together")
    names = {name: getattr(profile, name) for name in ("token_file", "ca_file", "cert_file", "key_file")}
    files = {name: str((place.parent / file).absolute()) for name, file in names.items() if file}
    return msgspec.structs.replace(profile, token=token, **files)


async def token_again(token_file: str) -> str:
    """The token that its file holds now; `Invalid` when that cannot be read."""
    try:
        return await in_thread(_read_token, Path(token_file))
    except (OSError, UnicodeDecodeError) as exc:
        raise Invalid(f"the token file {token_file!r} cannot be read: {exc}") from exc


def _read_token(path: Path) -> str:
    return path.read_text().partition("\n")[0].strip()
