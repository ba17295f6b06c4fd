"""One coordinator process: what it is made of, in which order it starts, how it ends.

Start: settings and secrets -> the port (health only) -> etcd, its versions checked -> the view -> first rows of an
empty catalog -> candidacy for leader -> cluster time is known, from the leader or by leading -> requests -> this
coordinator's own row -> its part of the shared port. Stop: the shared port is left, the leader resigns, no new
connections are taken, requests under way finish within `shutdown_s`, counters are flushed, everything is closed. A kill
at any point loses nothing: all that lasts is in etcd.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets as random_bytes
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from itertools import chain

from aiohttp import web

from copypool.cancellation import TaskGroup
from copypool.protocol.errors import CatalogDown, CopypoolError, Unavailable
from copypool.serving.settings import ConfigError
from copypool.telemetry import certificates, process
from copypool.telemetry.metrics import TEXT_FORMAT, Page, render
from copypool.tls import Chain, TlsError
from copypool_coordinator import dashboard, gauges, protection_metrics, server
from copypool_coordinator.auth import Auth
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.catalog import Catalog, CatalogSettings
from copypool_coordinator.client_api import ClientApi
from copypool_coordinator.config import Config, Secrets, advertised
from copypool_coordinator.core import TXN_OPS_MAX
from copypool_coordinator.drill_api import DrillApi
from copypool_coordinator.drilling import Driller
from copypool_coordinator.duties import Duties
from copypool_coordinator.etcd import Etcd, EtcdSettings, check_version
from copypool_coordinator.event_streams import EventStreams
from copypool_coordinator.eventlog import LogReader
from copypool_coordinator.files_http import FilesHttp
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.insight_api import InsightApi
from copypool_coordinator.inspecting import Inspector
from copypool_coordinator.kept import Kept
from copypool_coordinator.leasing import Leasing
from copypool_coordinator.locating import Locator
from copypool_coordinator.lookups import Lookups
from copypool_coordinator.metrics import Metrics
from copypool_coordinator.node_api import NodeApi
from copypool_coordinator.node_link import NodeLink
from copypool_coordinator.policy import Policy
from copypool_coordinator.policy_api import PolicyApi
from copypool_coordinator.process_api import ProcessApi
from copypool_coordinator.proving import Prover
from copypool_coordinator.reports import Reports
from copypool_coordinator.streaming import Reading

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_READY_TIMEOUT_S = 30.0
_TIME_TIMEOUT_S = 10.0
_TIMELESS = "cluster time is not known: the own clock is far from the catalog's, and no leader was heard yet"
#: /metrics waits this long for protection, which may be this old.
_METRICS_S = 2.0
_METRICS_AGE_S = 5.0
#: A mirror that brought nothing for this long is not current: the leader writes a row every second.
CURRENT_S = 10.0


class Coordinator:
    """A running coordinator. `async with Coordinator(...)`, then `run` until cancelled."""

    def __init__(
        self,
        config: Config,
        secrets: Secrets,
        tls: Chain | None = None,
        log_records: Mapping[str, int] | None = None,
    ) -> None:
        """`tls` is made of `config.tls` (`serving.encryption.load_chain`); `log_records` are counted by level."""
        self._config = config
        self._secrets = secrets
        self._tls = tls
        self._metrics = Metrics()
        self._front = server.Front(
            {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics_page},
            self._metrics,
            requests_max=config.limits.requests,
            peers_certified=config.tls is not None and config.tls.require_client_cert,
            shared_port=config.shared_port,
        )
        self._listener: server.Listener | None = None
        self._catalog: Catalog | None = None
        self._duties: Duties | None = None
        self._link: NodeLink | None = None
        self._lag = process.LoopLag()
        self._log_records = log_records or {}
        self._lookups: Lookups | None = None
        self._kept = Kept(config.limits.kept_bytes)
        self._event_streams: EventStreams | None = None
        self._requests: tuple[dict[str, server.Handler], FilesHttp] | None = None  #: what is answered once it may be
        self._serving = False

    @property
    def url(self) -> str:
        """Where this coordinator says it is; the port must be open."""
        assert self._listener is not None
        return advertised(self._config, self._listener.port)

    async def run(self, stop: asyncio.Event) -> None:
        """Start, serve until `stop` is set, end in order.

        Raises:
            ConfigError: something that trying again does not mend.
            OSError: a port cannot be opened.
        """
        config = self._config
        tls = self._tls.server if self._tls is not None else None
        self._front.add(await asyncio.to_thread(dashboard.load))
        self._listener = await server.listen(
            self._front, config.listen_host, config.listen_port, tls, config.limits.connections, config.shared_port
        )
        log.info("listening at %s", self.url)
        self._lag.start()
        stopping = asyncio.create_task(stop.wait(), name="stop")
        following = asyncio.create_task(self._follow_certificates(), name="certificates")
        try:
            async with AsyncExitStack() as stack:
                etcd = await self._connect(stopping)
                if etcd is None:
                    return
                stack.push_async_callback(etcd.close)
                opening = asyncio.create_task(self._open(etcd, stack), name="opening")
                if not await _done_before(stopping, opening):
                    return
                duties = opening.result()
                working = asyncio.create_task(self._work(duties), name="duties")
                await _first_of(stopping, working, self._listener.leave_shared)
                log.info("stopping")
                if self._event_streams is not None:
                    self._event_streams.close()
                await self._listener.close(self._front, config.shutdown_s)
        finally:
            stopping.cancel()
            self._lag.stop()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._listener.close(self._front, 0.0)

    async def _follow_certificates(self) -> None:
        if self._tls is not None and self._config.tls is not None:
            await self._tls.follow(self._config.tls.reload_s)

    async def _work(self, duties: Duties) -> None:
        assert self._catalog is not None, "opened before its duties"
        async with TaskGroup() as group:
            group.create_task(duties.run(), name="duties")
            group.create_task(self._catalog.blinded(), name="blinded")
            group.create_task(self._serve(self._catalog), name="opening for requests")

    async def _serve(self, catalog: Catalog) -> None:
        """Answer requests from the moment on at which cluster time is known: every answer to a node tells it.

        The shared port comes last, and what is ready listens there: who listened before would get its part of the
        connections and refuse their requests.
        """
        while not catalog.time_known:
            try:
                await catalog.wait_for(lambda _: catalog.time_known, _TIME_TIMEOUT_S)
            except Unavailable:
                log.warning("not serving yet: %s", _TIMELESS)
        assert self._requests is not None, "opened before"
        assert self._listener is not None, "opened before"
        self._front.open(*self._requests)
        await catalog.announce(self.url)
        await self._listener.share()
        self._serving = True
        log.info("serving")

    async def _connect(self, stopping: asyncio.Task[bool]) -> Etcd | None:
        """A connection to a sound etcd, however long that takes; None when the process is to stop before."""
        while not stopping.done():
            try:
                etcd = await Etcd.connect(self._etcd_settings())
            except CatalogDown as error:
                log.warning("waiting for etcd: %s", error.message)
                await asyncio.wait([stopping], timeout=_RETRY_S)
                continue
            except TlsError as exc:
                raise ConfigError(f"etcd: {exc}") from exc
            try:
                await self._check_members(etcd)
            except BaseException:
                await etcd.close()
                raise
            return etcd
        return None

    def _etcd_settings(self) -> EtcdSettings:
        section = self._config.etcd
        try:
            return EtcdSettings(
                tuple(section.endpoints),
                section.tls_files,
                section.user,
                self._secrets.etcd_password,
                section.timeout_s,
                section.reload_s,
            )
        except ValueError as exc:
            raise ConfigError(f"etcd: {exc}") from exc

    async def _check_members(self, etcd: Etcd) -> None:
        for member in await etcd.status():
            if member.error:
                log.warning("etcd %s: %s", member.endpoint, member.error)
                continue
            verdict = check_version(member.version)
            if verdict.refused and not self._config.allow_unsound_etcd:
                raise ConfigError(f"{verdict.message} (allow_unsound_etcd = true starts nevertheless)")
            if verdict.message:
                log.warning("%s: %s", member.endpoint, verdict.message)
        small = await etcd.with_smaller_transactions()
        if small:
            raise ConfigError(
                f"etcd {', '.join(small)}: --max-txn-ops is below {TXN_OPS_MAX}, etcd's default: every larger group of "
                "writes would be refused; start etcd with the default"
            )

    async def _open(self, etcd: Etcd, stack: AsyncExitStack) -> Duties:
        """Make every part; they close in reverse order."""
        config = self._config
        limits = config.limits
        catalog = Catalog(etcd, config.name, CatalogSettings(session_ttl_s=config.session_ttl_s))
        stack.push_async_callback(catalog.close)
        await catalog.start()
        await self._bootstrap(catalog)

        view = catalog.view
        mint = Mint(self._secrets.master, config.key_number)
        auth = Auth(view, mint, admin_token=self._secrets.admin_token, join_token=self._secrets.join_token)
        heartbeats, reports = Heartbeats(), Reports()
        link = NodeLink(view, mint, limits, self._tls.client if self._tls is not None else None)
        stack.push_async_callback(link.close)
        lookups = Lookups(
            catalog.lookup,
            txns=limits.lookup_txns,
            queue=limits.lookup_queue,
            timeout_s=config.etcd.timeout_s + 1.0,
            on_batch=self._metrics.lookup_batch.observe,
            heard_s=lambda: catalog.heard_s,
        )
        stack.push_async_callback(lookups.close)
        locator = Locator(catalog, lookups, heartbeats, link, mint, config.zone)
        leasing = Leasing(
            view,
            heartbeats,
            mint,
            catalog.now_ms,
            random.SystemRandom(),
            lambda namespace: catalog.counters.of_namespace(namespace)[1],
            lambda: catalog.away,
        )
        reading = Reading(catalog, locator, link, mint, reports, self._metrics, self._kept)
        policy = Policy(
            session_ttl_ms=config.session_ttl_s * 1000,
            grace_ms=config.grace_s * 1000,
            scrub_period_ms=config.scrub_period_s * 1000,
            drop_delay_ms=config.drop_delay_s * 1000,
            process_patience_ms=config.process_patience_s * 1000,
            scrub_floor_bytes_per_s=config.scrub_floor_bytes_s,
            scrub_bytes_per_s=config.scrub_ceiling_bytes_s,
        )
        duties = Duties(catalog, link, mint, heartbeats, reports, policy, self._metrics, name=config.name, url=self.url)
        clients = ClientApi(
            catalog, auth, locator, leasing, reading, duties.overview, reports, body_bytes=limits.rpc_body_bytes
        )
        policies = PolicyApi(catalog, auth, duties.overview, config.name, body_bytes=limits.rpc_body_bytes)
        prover = Prover(catalog, locator, reading, duties.sample, policy, duties.overview.caught_up)
        inspector = Inspector(catalog, locator, reading, duties.overview, heartbeats)
        events = LogReader(catalog)
        insight = InsightApi(catalog, auth, prover, inspector, events, body_bytes=limits.rpc_body_bytes)
        driller = Driller(catalog, locator, reading, duties.sample, duties.overview, heartbeats, events)
        drills = DrillApi(catalog, auth, driller, body_bytes=limits.rpc_body_bytes)
        turns = catalog.turns(policy, lambda: duties.leader.guard)
        nodes = NodeApi(
            catalog, auth, mint, heartbeats, self._metrics, reports, turns, body_bytes=limits.node_body_bytes
        )
        files = FilesHttp(catalog, auth, mint, locator, leasing, reading, link, streams=limits.streams)
        jobs = ProcessApi(catalog, auth, duties.overview, heartbeats, body_bytes=limits.rpc_body_bytes)
        self._catalog, self._lookups, self._link, self._duties = catalog, lookups, link, duties
        self._event_streams = EventStreams(catalog, auth, events)
        self._front.add({"/ui/events": self._event_streams.handle})
        posts: dict[str, server.Handler] = {
            **clients.routes(),
            **policies.routes(),
            **jobs.routes(),
            **insight.routes(),
            **drills.routes(),
            **nodes.routes(),
        }
        self._requests = posts, files
        return duties

    async def _bootstrap(self, catalog: Catalog) -> None:
        """Wait for the view and make what an empty catalog needs."""
        first = self._config.bootstrap
        while True:
            try:
                await catalog.ready(_READY_TIMEOUT_S)
                await catalog.bootstrap(
                    random_bytes.token_bytes(16),
                    primary_pool=first.primary_pool,
                    copy_pool=first.copy_pool,
                    namespace=first.namespace,
                )
                await catalog.wait_for(lambda view: view.cluster is not None, _READY_TIMEOUT_S)
                return
            except CopypoolError as error:
                if not error.retryable:
                    raise
                log.warning("waiting for the catalog: %s", error.message)
                await asyncio.sleep(_RETRY_S)

    # -- health ------------------------------------------------------------------------------------
    async def _livez(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _: web.BaseRequest) -> web.Response:
        reason = self._not_ready()
        return web.Response(text=f"{reason}\n" if reason else "ready\n", status=503 if reason else 200)

    def _not_ready(self) -> str:
        if self._catalog is None:
            return "starting: the catalog is not read yet"
        age_s = time.monotonic() - self._catalog.heard_s
        if not self._catalog.view.ready or age_s > CURRENT_S:
            return f"nothing heard from etcd for {age_s:.0f} s: what is known here may be old"
        if not self._catalog.time_known:
            return f"starting: {_TIMELESS}"
        return "" if self._serving else "starting: this coordinator is not announced yet"

    async def _metrics_page(self, _: web.BaseRequest) -> web.Response:
        page: list[Page] = [
            self._metrics.page(),
            gauges.process_page(self._front.in_work, self._fills(), self._kept.size_bytes),
        ]
        if self._catalog is not None:
            page.append(gauges.catalog_page(self._catalog))
        if self._duties is not None:
            page.append(gauges.leader_page(self._duties.leader))
            await self._duties.overview.look_at_etcd()
            page.append(gauges.etcd_page(self._duties.overview, self._config.etcd.quota_bytes))
            page.append(await self._protection_page())
        etcd = self._catalog.etcd if self._catalog is not None else None
        of_use = {"server": self._tls.state if self._tls else None, "etcd": etcd.tls if etcd else None}
        page.append(certificates.page(of_use))
        page.append(await process.page(self._lag, self._log_records))
        return web.Response(text=render(chain.from_iterable(page)), headers={"Content-Type": TEXT_FORMAT})

    def _fills(self) -> dict[str, float]:
        """Share of its limit that each bounded thing has taken."""
        limits = self._config.limits
        connections = 0 if self._listener is None else self._listener.connections
        fills = {
            "connections": connections / limits.connections,
            "requests": self._front.in_work / limits.requests,
        }
        if self._lookups is not None and self._link is not None:
            fills["lookups"] = self._lookups.waiting / limits.lookup_queue
            fills["node_reads"] = self._link.reads_ratio
            fills["streams"] = self._front.streams_ratio
        if self._event_streams is not None:
            fills["event_streams"] = self._event_streams.streams_ratio
        return fills

    async def _protection_page(self) -> Page:
        """Protection as seen from here; left out while it cannot be told in time."""
        assert self._duties is not None and self._catalog is not None, "opened before"  # noqa: PT018
        try:
            async with asyncio.timeout(_METRICS_S):
                found = await self._duties.overview.status_lately(_METRICS_AGE_S)
        except (CopypoolError, TimeoutError) as error:
            log.info("metrics without protection: %s", error)
            return ()
        ids = {name: entry.row.id for name, entry in self._catalog.view.namespaces.items()}
        return protection_metrics.page(found, ids)


async def _done_before(stopping: asyncio.Task[bool], work: asyncio.Task[Duties]) -> bool:
    """Whether `work` was done before the process is to stop; else it is cancelled and over when this returns."""
    try:
        await asyncio.wait([stopping, work], return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


async def _first_of(stopping: asyncio.Task[bool], work: asyncio.Task[None], leave: Callable[[], None]) -> None:
    """Return when the process is to stop; raise what `work` fails with. `work` is over when it returns.

    `leave` is called before `work` is told to end.
    """
    try:
        await asyncio.wait([stopping, work], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            raise RuntimeError("the coordinator's duties ended by themselves")
    finally:
        leave()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
