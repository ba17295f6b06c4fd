"""Client tokens: random bearer strings with a role and a scope. The catalog holds only their SHA-256."""

from __future__ import annotations

import hashlib
from enum import IntEnum

import msgspec

from copypool.protocol.errors import Forbidden, NotFound
from copypool.protocol.names import in_scope

TOKEN_PREFIX = "cpt_"


class Role(IntEnum):
    """Each role includes the ones below it."""

    reader = 1
    writer = 2
    operator = 3
    admin = 4


class Principal(msgspec.Struct, frozen=True):
    """Who a token stands for and what it may touch."""

    name: str
    role: Role
    namespace: str = ""  #: empty: every namespace
    prefix: str = ""  #: empty: every path of the namespace; matched at path boundaries
    expires_ms: int = 0  #: cluster time; 0: never

    def require(self, role: Role, namespace: str | None = None, path: str | None = None) -> None:
        """Raise unless the token may do this. Out of scope is `NotFound`, so that names do not leak."""
        if namespace is not None and self.namespace and namespace != self.namespace:
            raise NotFound(f"no namespace {namespace!r}")
        if path is not None and not in_scope(path, self.prefix):
            raise NotFound(f"nothing is at {path!r} as far as this token reaches")
        if self.role < role:
            raise Forbidden(f"this needs the role {role.name!r}; the token {self.name!r} has {self.role.name!r}")
        if namespace is None and self.namespace and role >= Role.operator:
            raise Forbidden(f"the token {self.name!r} is limited to the namespace {self.namespace!r}")


def token_key(token: str) -> bytes:
    """SHA-256 of the token, as stored in the catalog."""
    return hashlib.sha256(token.encode()).digest()


def new_token(random_bytes: bytes) -> str:
    """Text form of a token made of >= 24 random bytes."""
    return TOKEN_PREFIX + random_bytes.hex()
