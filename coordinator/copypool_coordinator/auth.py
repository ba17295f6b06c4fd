"""Who calls: clients by bearer token, nodes by credential, new nodes by the join token. No I/O.

Every secret is compared in constant time or found by its SHA-256. An `Authorization` header is never logged, and no
answer tells an unknown token from an expired one.
"""

from __future__ import annotations

import hmac

from copypool.protocol.errors import Unauthorized
from copypool.protocol.tokens import Principal, Role, token_key
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.view import ClusterView

#: Longer headers are no credentials.
_HEADER_MAX = 512
_NODE_IDS = 1 << 32


class Auth:
    """Checks `Authorization` headers against the secrets of this process and the tokens of the catalog."""

    def __init__(self, view: ClusterView, mint: Mint, *, admin_token: str, join_token: str) -> None:
        self._view = view
        self._mint = mint
        self._admin_key = token_key(admin_token)
        self._admin = Principal("bootstrap-admin", Role.admin)
        self._join = token_key(join_token)

    def principal(self, header: str | None, now_ms: int) -> Principal:
        """The client behind `Bearer <token>`.

        Raises:
            Unauthorized: no token, an unknown, revoked or expired one.
        """
        if not header:
            raise Unauthorized("no token: send `Authorization: Bearer <token>`")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token or len(header) > _HEADER_MAX:
            raise Unauthorized("the Authorization header is not of the form `Bearer <token>`")
        key = token_key(token)
        if hmac.compare_digest(key, self._admin_key):
            return self._admin
        known = self._view.tokens.get(key)
        if known is None or 0 < known.row.expires_ms <= now_ms:
            raise Unauthorized("the token is not known, was revoked or has expired: ask an admin for a new one")
        row = known.row
        return Principal(row.name, Role(row.role), row.namespace, row.prefix, row.expires_ms)

    def node(self, header: str | None) -> int:
        """The id of the node behind `Node <id>:<credential hex>`; raises `Unauthorized`."""
        scheme, _, rest = (header or "")[:_HEADER_MAX].partition(" ")
        text, _, credential = rest.partition(":")
        if scheme != "Node" or not (text.isascii() and text.isdigit()) or len(text) > len(str(_NODE_IDS)):
            raise Unauthorized("nodes send `Authorization: Node <id>:<credential>`")
        node_id = int(text)
        try:
            shown = bytes.fromhex(credential)
        except ValueError:
            shown = b""
        if not hmac.compare_digest(shown, self._mint.credential(node_id)):
            raise Unauthorized(f"this is not the credential of node {node_id}: does it belong to another cluster?")
        return node_id

    def joining(self, header: str | None) -> None:
        """Check `Join <join token>`; raises `Unauthorized`."""
        scheme, _, token = (header or "")[:_HEADER_MAX].partition(" ")
        if scheme != "Join" or not hmac.compare_digest(token_key(token), self._join):
            raise Unauthorized("this is not the cluster's join token")
