"""Secrets are files that only their owner, or the owner's group, can read. Blocking."""

from __future__ import annotations

from pathlib import Path

from copypool.serving.settings import ConfigError

TOKEN_MIN_CHARACTERS = 24
#: The group may read: that is how Kubernetes mounts a Secret for a process that is not root.
_OPEN_TO_OTHERS = 0o027


def read_secret(path: str, setting: str) -> bytes:
    """The file's content without line ends at its ends. `ConfigError` names the setting."""
    file = Path(path)
    try:
        mode = file.stat().st_mode
        content = file.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{setting}: cannot read {path}: {exc.strerror}") from exc
    if mode & _OPEN_TO_OTHERS:
        raise ConfigError(f"{setting}: {path} is open to others (mode {mode & 0o777:o}): chmod 600 it")
    return content.strip(b"\r\n")


def read_text(path: str, setting: str) -> str:
    """A secret that is ASCII text, stripped."""
    try:
        return read_secret(path, setting).decode("ascii").strip()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{setting}: {path} is not ASCII text") from exc


def read_token(path: str, setting: str) -> str:
    """A secret that is a token of sufficient length."""
    token = read_text(path, setting)
    if len(token) < TOKEN_MIN_CHARACTERS:
        raise ConfigError(f"{setting}: a token has at least {TOKEN_MIN_CHARACTERS} characters; {path} has {len(token)}")
    return token
