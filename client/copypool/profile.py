"""Which cluster to talk to and as whom: a small TOML file.

    coordinators = ["https://10.0.0.1:7400", "https://10.0.0.2:7400"]
    token_file = "token"        # relative to this file; or: token = "cpt_..."
    ca_file = "ca.pem"          # optional, relative to this file
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

VARIABLE = "COPYPOOL_PROFILE"
DEV_PROFILE = Path(".dev") / "profile.toml"


class Profile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One cluster and one token."""

    coordinators: list[str]
    token: str = ""
    token_file: str = ""  #: file whose first line is the token
    ca_file: str = ""  #: PEM file of the authority that signed the servers' certificates
    namespace: str = ""


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
            token = (place.parent / profile.token_file).read_text().partition("\n")[0].strip()
    except OSError as exc:
        raise Invalid(f"the profile {os.fspath(place)!r} cannot be read: {exc}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Invalid(f"the profile {os.fspath(place)!r} is malformed: {exc}") from exc
    ca_file = str((place.parent / profile.ca_file).absolute()) if profile.ca_file else ""
    return msgspec.structs.replace(profile, token=token, ca_file=ca_file)
