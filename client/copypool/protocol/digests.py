"""Content digests: BLAKE3, 32 bytes, over a file's payload in order. Text form `blake3:<64 hex>`."""

from __future__ import annotations

from blake3 import blake3

from copypool.protocol.errors import Invalid

DIGEST_BYTES = 32
_PREFIX = "blake3:"


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """The digest of a whole payload."""
    return blake3(data).digest()


class Hasher:
    """Incremental digest; `update` on large buffers releases the interpreter lock."""

    __slots__ = ("_state", "length")

    def __init__(self) -> None:
        self._state = blake3()
        self.length = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes."""
        self._state.update(data)
        self.length += len(data)

    def digest(self) -> bytes:
        """Digest of all bytes added so far; more may follow."""
        return self._state.digest()


def format_digest(digest: bytes) -> str:
    """Text form."""
    return _PREFIX + digest.hex()


def parse_digest(text: str) -> bytes:
    """Digest bytes from the text form; `Invalid` when it is none."""
    wrong = f"the digest {text[:80]!r} is not of the form {_PREFIX!r} and {2 * DIGEST_BYTES} hexadecimal digits"
    if not text.startswith(_PREFIX):
        raise Invalid(f"{wrong}: digests here are BLAKE3")
    try:
        raw = bytes.fromhex(text.removeprefix(_PREFIX))
    except ValueError as exc:
        raise Invalid(wrong) from exc
    if len(raw) != DIGEST_BYTES:
        raise Invalid(wrong)
    return raw
