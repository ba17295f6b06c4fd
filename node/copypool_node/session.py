"""The node's session with the coordinators: join, register, and what their replies tell.

An epoch is the catalog's revision of one registration. It ends when a coordinator says so (another process of this
node registered, or the lease ran out); from then on nothing of that epoch can be committed, and the node stops
writing, registers again and seals what it had open. Reads go on: they need keys and clock only.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Sequence

from copypool.protocol.capability import NodeKeys
from copypool.protocol.errors import Fenced, Unauthorized
from copypool.protocol.internal import (
    HeartbeatReply,
    JoinReply,
    JoinRequest,
    Peer,
    RegisterReply,
    RegisterRequest,
)
from copypool_node.clock import ClusterClock
from copypool_node.config import NodeConfig
from copypool_node.identity import Identity
from copypool_node.link import CoordinatorLink

log = logging.getLogger(__name__)

SOFTWARE = "copypool-node/0.1"
JOIN_S = 60.0


class Session:
    """What this process knows of its standing. Changed by replies only."""

    def __init__(self, config: NodeConfig, link: CoordinatorLink, clock: ClusterClock, process_nonce: bytes) -> None:
        self.link = link
        self.clock = clock
        self.identity = Identity(b"")
        self.epoch = 0
        self.ttl_s = 15
        self.renewed_s = float("-inf")  #: monotonic time before the last call that renewed the session's lease
        self.alive = False
        self.stopping = False
        self.term = 0
        #: Highest revision of the catalog that a reply has told of; labels take it over: see `label`.
        self.catalog_revision = 0
        self.keys: dict[int, NodeKeys] = {}
        self.peers: dict[int, Peer] = {}
        self.unmounted: dict[str, str] = {}  #: why volumes of the configuration are not mounted, by name
        self.ended = asyncio.Event()  #: set while there is no living session
        self.ended.set()
        self._config = config
        self._nonce = process_nonce
        self._registrations = 0
        self._command_token = b""

    @property
    def node_id(self) -> int:
        """Number of this node in its cluster."""
        return self.identity.node_id

    @property
    def cluster_id(self) -> bytes:
        """Number of the cluster."""
        return self.identity.cluster_id

    def is_current(self, epoch: int) -> bool:
        """Whether this epoch may still write, as far as is known here."""
        return self.alive and self.epoch == epoch

    def lease_margin_s(self, now_s: float) -> float:
        """How long the session lasts if nothing renews it any more; 0 without a session."""
        return max(0.0, self.renewed_s + self.ttl_s - now_s) if self.alive else 0.0

    def refuse_volume(self, name: str, what: str, reason: str) -> None:
        """Note why a volume is not mounted, for heartbeats; the log hears of each reason once, not of every try."""
        if self.unmounted.get(name) != reason:
            log.error("volume %s cannot be %s now: %s", name, what, reason, extra={"volume": name})
        self.unmounted[name] = reason

    def hopeless(self, epoch: int) -> bool:
        """Whether a call for this epoch is not worth repeating: it is over, or the node ends while etcd is away."""
        return not self.is_current(epoch) or (self.stopping and bool(self.link.catalog_away))

    # -- join and register --------------------------------------------------------------------
    async def join(self, identity: Identity, token: str) -> Identity:
        """Join the cluster with a join token; safe to repeat. The caller stores the identity."""
        reply = await self.link.call(
            "join",
            JoinRequest(self._config.name, identity.join_nonce),
            JoinReply,
            deadline_s=JOIN_S,
            authorization=f"Join {token}",
        )
        return Identity(identity.join_nonce, reply.cluster_id, reply.node_id, reply.credential, reply.command_key)

    def adopt(self, identity: Identity) -> None:
        """Be this node from now on."""
        self.identity = identity
        self.link.authorization = identity.authorization
        self._command_token = identity.command_key.hex().encode()

    async def register(self, *, deadline_s: float) -> None:
        """Start a new epoch: every earlier one of this node is fenced when it returns."""
        # A new nonce per registration: the coordinator takes an equal nonce as a repeat of the same one.
        nonce = (int.from_bytes(self._nonce, "big") + self._registrations).to_bytes(17, "big")[-16:]
        asked_s = time.monotonic()
        reply = await self.link.call(
            "register",
            RegisterRequest(
                self.node_id, nonce, self._config.url, self._config.zone, self._config.host_domain, SOFTWARE
            ),
            RegisterReply,
            deadline_s=deadline_s,
        )
        if reply.cluster_id != self.cluster_id:
            raise Fenced("the coordinators belong to another cluster than this node's identity")
        self._registrations += 1
        self.renewed_s = asked_s
        self.epoch = reply.epoch
        self.saw_revision(reply.epoch)
        self.ttl_s = reply.ttl_s
        self.term = max(self.term, reply.term)
        self._adopt_keys(reply.keys)
        self.clock.adopt(reply.cluster_time_ms)
        self.link.learn(reply.coordinators)
        self.alive = True
        self.ended.clear()
        log.info("registered as node %d, epoch %d", self.node_id, self.epoch)

    def end(self, reason: str) -> None:
        """The epoch is over: nothing of it will be committed any more. Safe to repeat."""
        if self.alive:
            log.warning("the session of epoch %d ended: %s", self.epoch, reason)
        self.alive = False
        self.ended.set()

    # -- what replies tell --------------------------------------------------------------------
    def heard(self, reply: HeartbeatReply, epoch: int) -> None:
        """Take over a heartbeat's reply that was asked for under `epoch`."""
        self.clock.adopt(reply.cluster_time_ms)
        self.term = max(self.term, reply.term)
        self.link.learn(reply.coordinators)
        self.peers = {peer.node_id: peer for peer in reply.peers}
        self.saw_revision(reply.revision)
        self._adopt_keys(reply.keys)
        if not reply.session_alive and epoch == self.epoch:
            self.end("a coordinator says that it was replaced or ran out")

    def saw_revision(self, revision: int) -> None:
        """The catalog has reached this revision."""
        self.catalog_revision = max(self.catalog_revision, revision)

    def _adopt_keys(self, keys: Sequence[NodeKeys]) -> None:
        told = {key.number: key for key in keys}
        if told and told != self.keys:  # what was opened with the same keys stays open
            self.keys = told

    def check_command(self, authorization: str) -> None:
        """Raise `Unauthorized` unless the header carries this node's command key."""
        given = authorization.removeprefix("Command ").encode()
        if not self._command_token or not hmac.compare_digest(given, self._command_token):
            raise Unauthorized("this needs the command key of this node")

    def check_term(self, term: int) -> None:
        """Refuse a leader that has been replaced (A9); a higher term is taken over."""
        if term < self.term:
            raise Fenced(f"the command is of term {term}; this node has seen term {self.term}")
        self.term = term
