"""The node as a whole: what it is made of, how it starts, loses its session, and ends.

    identity -> register -> per volume: mount, compare, seal and cut what an earlier epoch had open -> writes

The HTTP server runs from the first moment (liveness); reads work once a volume is mounted, writes once it is brought
up under the current session. When the session ends, all open extents are let go in memory, a new epoch is registered,
and the volumes are brought up again under it: the same road as after a crash.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from concurrent.futures import ThreadPoolExecutor

from copypool.protocol.errors import CopypoolError, Overloaded, Unauthorized
from copypool.serving.settings import ConfigError
from copypool.telemetry import tracing
from copypool.tls import Chain
from copypool_node.clock import ClusterClock
from copypool_node.config import NodeConfig, VolumeConfig, read_join_token
from copypool_node.disk import Disk
from copypool_node.heartbeat import Heart
from copypool_node.holdings import Holding, Holdings
from copypool_node.identity import Identity, IdentityStore
from copypool_node.keeper import VolumeKeeper
from copypool_node.link import CoordinatorLink
from copypool_node.metrics import Metrics
from copypool_node.pull import Puller
from copypool_node.sealing import Sealer
from copypool_node.session import Session
from copypool_node.streams import StreamPool
from copypool_node.twin_files import TwinFiles
from copypool_node.verify import Verifier, VerifyJob
from copypool_node.volume import Volume
from copypool_node.volumes import MountedVolume
from copypool_node.writer import Lane

log = logging.getLogger(__name__)

REGISTER_S = 30.0
RETRY_S = 1.0
VOLUME_RETRY_S = 2.0
DRAIN_S = 2.0
DIGEST_THREADS = 2


class Node:
    """One storage node process, without its listener (see `server`)."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        tls: Chain | None = None,
        disk: Disk | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`tls` is made of `config.tls`, with a server's context (`serving.encryption.load_chain`)."""
        self.config = config
        self.tls = tls
        self.metrics = Metrics()
        self.holdings = Holdings()
        self.clock = ClusterClock()
        self._rng = rng or random.Random()
        self.link = CoordinatorLink(config.coordinators, tls=tls.client if tls is not None else None, rng=self._rng)
        self.session = Session(config, self.link, self.clock, os.urandom(16))
        self.sealer = Sealer(self.session, self.metrics, self._sealed)
        self.volumes: list[MountedVolume] = []
        self.verifiers: dict[MountedVolume, Verifier] = {}
        self._digest_threads = ThreadPoolExecutor(DIGEST_THREADS, thread_name_prefix="digest")
        self.puller = Puller(self.session, self.holdings, self.metrics, config.limits, self._digest_threads)
        self.twins = TwinFiles(
            self.session, self.holdings, self.metrics, config.limits.twins_open, self._digest_threads
        )
        self.twins.on_ended = self.puller.keep
        self._disk = disk or Disk()
        self._store = IdentityStore(config.state_dir, self._disk)
        self._keeper = VolumeKeeper(self.session, self.holdings, self.sealer)
        self._by_id: dict[int, MountedVolume] = {}
        self._identity_turn = asyncio.Lock()
        self._opening: dict[str, asyncio.Task[bool]] = {}
        self._main: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin: everything else happens in the background until `stop`."""
        self._main = asyncio.create_task(self._run())
        if self.tls is not None and self.config.tls is not None:
            self._following = asyncio.create_task(self.tls.follow(self.config.tls.reload_s))

    async def _run(self) -> None:
        try:
            await self._join()
            while True:
                await self._register()
                await self._live()
                await self._let_go("the session ended")
        except asyncio.CancelledError:
            raise
        except BaseException:
            log.exception("the node cannot go on")
            raise

    async def _join(self) -> None:
        """Be a known node: by the identity file, or by joining with the join token, until it works."""
        while not await asyncio.to_thread(self._store.lock):
            log.error("another process of this node runs: it has %s locked", self.config.state_dir)
            await asyncio.sleep(RETRY_S)
        identity = await asyncio.to_thread(self._store.load, os.urandom(16))
        while not identity.joined:
            try:
                identity = await self._join_once(identity)
            except Unauthorized:
                raise
            except (CopypoolError, ConfigError) as exc:
                log.warning("cannot join yet: %s", exc)
                await asyncio.sleep(RETRY_S)
        self.session.adopt(identity)

    async def _join_once(self, identity: Identity) -> Identity:
        token = await asyncio.to_thread(read_join_token, self.config)
        joined = await self.session.join(identity, token)
        await asyncio.to_thread(self._store.store, joined)
        log.info("joined as node %d", joined.node_id)
        return joined

    async def _register(self) -> None:
        while True:
            try:
                return await self.session.register(deadline_s=REGISTER_S)
            except Unauthorized:
                raise
            except CopypoolError as exc:
                log.warning("cannot register yet: %s", exc)
                await asyncio.sleep(RETRY_S)

    async def _live(self) -> None:
        """One session, to its end: the heart beats, each volume is brought up on its own."""
        heart = Heart(self.session, self.volumes, self.config.limits.heartbeat_s, self._rng)
        others = [asyncio.create_task(self._keep(config)) for config in self.config.volumes]
        others.append(asyncio.create_task(self._sweep()))
        try:
            await heart.run()
        finally:
            # A volume whose disk hangs is left where it is; it must not hold up the next registration.
            for task in others:
                task.cancel()
            results = await asyncio.gather(*others, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _keep(self, config: VolumeConfig) -> None:
        """Open a volume, however long that takes (locked, disk not there), and bring it up under this session."""
        while True:
            volume = next((one for one in self.volumes if one.name == config.name), None)
            if volume is not None:
                return await self._bring_up(volume)
            opening = self._opening.get(config.name)
            if opening is None:
                opening = self._opening[config.name] = asyncio.create_task(self._open(config))
            await asyncio.wait([opening])  # it goes on when the session ends: a lock that it took is not lost
            del self._opening[config.name]
            if not opening.result():
                await asyncio.sleep(VOLUME_RETRY_S)

    async def _open(self, config: VolumeConfig) -> bool:
        """Lock and index a volume; False when it cannot be used now."""
        try:
            disk = await Volume.open(
                config.path,
                name=config.name,
                pool=config.pool,
                pool_type=config.pool_type,
                cluster_id=self.session.cluster_id,
                reserve_bytes=config.reserve_bytes,
                disk=self._disk,
                create=config.name not in self.session.identity.mounted,
            )
        except CopypoolError as exc:
            self.session.refuse_volume(config.name, "used", exc.message)
            return False
        self.session.unmounted.pop(config.name, None)
        volume = MountedVolume(config, disk, self.config.limits, self.session, self.holdings, self.metrics)
        self.verifiers[volume] = Verifier(
            volume, self.session, self.holdings, self.metrics, self.config.limits.commands_queued
        )
        self.volumes.append(volume)
        return True

    async def _bring_up(self, volume: MountedVolume) -> None:
        await self._keeper.bring_up(volume)
        if volume.id < 0:
            return
        self._by_id[volume.id] = volume
        async with self._identity_turn:
            identity = self.session.identity
            if volume.name in identity.mounted:
                return
            identity.mounted.append(volume.name)
            try:
                await asyncio.to_thread(self._store.store, identity)
            except CopypoolError as exc:
                log.error("volume %s is not noted as mounted: %s", volume.name, exc, extra={"volume": volume.name})

    async def _sweep(self) -> None:
        """Once a heartbeat: seal idle stream extents."""
        loop = asyncio.get_running_loop()
        while self.session.alive:
            for volume in self.volumes:
                for pool in volume.streams.values():
                    pool.sweep(loop.time())
            try:
                async with asyncio.timeout(self.config.limits.heartbeat_s):
                    await self.session.ended.wait()
            except TimeoutError:
                continue

    async def _let_go(self, reason: str, *, finish_s: float = 0.0) -> None:
        """Stop appending: lanes and streams end, open extents are forgotten (the next bring-up seals them)."""
        ends = [lane.stop(reason, finish_s=finish_s) for volume in self.volumes for lane in volume.all_lanes()]
        ends += [pool.stop(reason, finish_s=finish_s) for volume in self.volumes for pool in volume.streams.values()]
        await asyncio.gather(*ends, self.twins.end_all(reason))
        for volume in self.volumes:
            volume.lanes.clear()
            volume.side_lanes.clear()
            volume.streams.clear()
            volume.open_extents = 0
        await self.sealer.drain(DRAIN_S)
        for holding in self.holdings:
            holding.writing = False

    async def stop(self) -> None:
        """End in order: no new writes, groups under way finish (bounded), everything is closed. kill -9 is safe too."""
        self.session.stopping = True
        await self._let_go("the node is stopping", finish_s=self.config.limits.shutdown_s)
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self._close()

    async def _close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        for opening in self._opening.values():
            opening.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        await self.puller.close()
        for verifier in self.verifiers.values():
            await verifier.close()
        await self.sealer.close()
        for volume in self.volumes:
            await volume.close()
        await self.link.close()
        self._digest_threads.shutdown(wait=False, cancel_futures=True)
        self._store.unlock()

    async def crash(self) -> None:
        """End without order, as far as one process can: nothing is finished, nobody is told. For tests of recovery."""
        self.session.end("crash")
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self._let_go("the node crashed")
        await self._close()

    @property
    def failed(self) -> BaseException | None:
        """Why the node cannot go on; None: it goes on."""
        if self._main is None or not self._main.done() or self._main.cancelled():
            return None
        return self._main.exception()

    @property
    def ready(self) -> bool:
        """Registered, and every volume that could be opened takes writes or is known to be unable to."""
        return self.session.alive and any(volume.ready_epoch == self.session.epoch for volume in self.volumes)

    @property
    def serves(self) -> bool:
        """Whether capabilities are honoured: a volume is mounted whose claim this process has made.

        It stays so while etcd and the coordinators are away, since reads need neither.
        """
        return any(volume.id >= 0 for volume in self.volumes)

    # -- parts --------------------------------------------------------------------------------
    def volume_by_id(self, volume_id: int) -> MountedVolume | None:
        """The volume with this number of the catalog's, once it is mounted here."""
        found = self._by_id.get(volume_id)
        if found is None:
            found = next((volume for volume in self.volumes if volume.id == volume_id), None)
        return found

    def lane_of(self, volume: MountedVolume, class_id: int) -> Lane:
        """The lane of small bodies of a class."""
        lane = volume.lanes.get(class_id)
        if lane is None:
            lane = volume.lanes[class_id] = Lane(volume, class_id, self.sealer)
        return lane

    def lane_of_batch(self, volume: MountedVolume, class_id: int) -> Lane:
        """The lane for a batch: the class's second one while a whole group waits in the first.

        What it takes would wait there for a commit that has not begun; here it is committed beside it. A batch stays in
        one lane.
        """
        lane = self.lane_of(volume, class_id)
        side = volume.side_lanes.get(class_id)
        if not lane.has_next or not ((side is not None and side.extents()) or volume.may_open(class_id)):
            return lane
        if side is None:
            side = volume.side_lanes[class_id] = Lane(volume, class_id, self.sealer)
        return side if side.queued_records < lane.queued_records else lane

    def streams_of(self, volume: MountedVolume, class_id: int) -> StreamPool:
        """The extents of long bodies of a class."""
        pool = volume.streams.get(class_id)
        if pool is None:
            pool = volume.streams[class_id] = StreamPool(
                volume, class_id, self.sealer, self.session, self._digest_threads
            )
        return pool

    def suspect(self, holding: Holding, what: str) -> None:
        """A reader met a bad byte, or none: have the location verified soon."""
        log.error(
            "volume %s, extent %d: a read failed: %s",
            holding.volume.name,
            holding.extent,
            what,
            extra={"volume": holding.volume.name, "extent": holding.extent},
        )
        self._verify(holding, first=True)

    def _sealed(self, holding: Holding) -> None:
        self._verify(holding, first=False)

    def _verify(self, holding: Holding, *, first: bool) -> None:
        job = VerifyJob(holding.extent, holding.generation, holding.length, holding.sealed, trace=tracing.current())
        try:
            self.verifiers[holding.volume].enqueue(job, first=first)
        except Overloaded as exc:
            log.warning("%s", exc)
