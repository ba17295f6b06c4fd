"""`POST /rpc/drill_*`: drills of operators, and their evidence in the event log. Thin, like `client_api`."""

from __future__ import annotations

from copypool.protocol import drills
from copypool.protocol.errors import Invalid
from copypool.protocol.names import check_name
from copypool.protocol.tokens import Principal, Role
from copypool_coordinator import verbs
from copypool_coordinator.auth import Auth
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.drilling import Driller
from copypool_coordinator.insight_api import check_cursor
from copypool_coordinator.rows import FORMAT, EventRow
from copypool_coordinator.verbs import Handler, Verb

READ_DRILL, LOSS_DRILL = "DrillReadFromCopies", "DrillLoseNode"

_SEED_MAX = 1 << 63
_PARTS_MAX = 1 << 31
_TOLD_MAX = 3  #: problems in one event
_TEXT_MAX = 200


class DrillApi:
    """Handlers of these verbs."""

    def __init__(self, catalog: Catalog, auth: Auth, driller: Driller, *, body_bytes: int) -> None:
        self._catalog = catalog
        self._auth = auth
        self._driller = driller
        self._body_bytes = body_bytes

    def routes(self) -> dict[str, Handler]:
        """Path -> handler."""
        table = {
            "drill_sample": Verb(drills.SampleRequest, Role.operator, self._sample),
            "drill_read_done": Verb(drills.ReadDrill, Role.operator, self._read_done),
            "drill_lose_node": Verb(drills.LoseNodeRequest, Role.operator, self._lose_node),
            "drill_lose_node_files": Verb(drills.LossFilesRequest, Role.operator, self._lose_node_files),
            "drill_lose_node_done": Verb(drills.LossReport, Role.operator, self._lose_node_done),
        }
        return verbs.routes(table, self._auth, self._catalog.now_ms, self._body_bytes)

    async def _sample(self, _: Principal, body: drills.SampleRequest) -> drills.SampleReply:
        if not 1 <= body.count <= drills.SAMPLE_MAX or not 0 <= body.part <= _PARTS_MAX:
            raise Invalid(f"a sample has 1 to {drills.SAMPLE_MAX} files")
        if not 0 <= body.seed < _SEED_MAX:
            raise Invalid(f"a seed is between 0 and {_SEED_MAX - 1}")
        if body.namespace:
            check_name(body.namespace, "namespace")
        return await self._driller.sample(body)

    async def _lose_node(self, _: Principal, body: drills.LoseNodeRequest) -> drills.LossForecast:
        check_name(body.node, "node")
        if not -1 <= body.after < _SEED_MAX or any(size < 0 for size in body.taken.values()):
            raise Invalid("a cursor is an extent, or -1 for the first page; volumes take bytes, and give none")
        return await self._driller.lose_node(body)

    async def _lose_node_files(self, _: Principal, body: drills.LossFilesRequest) -> drills.LossFilesReply:
        check_name(body.node, "node")
        check_name(body.namespace, "namespace")
        check_cursor(body.after)
        if not 0 <= body.names <= drills.LOSS_NAMES_MAX:
            raise Invalid(f"a page names at most {drills.LOSS_NAMES_MAX} files")
        return await self._driller.lose_node_files(body)

    async def _read_done(self, principal: Principal, body: drills.ReadDrill) -> drills.DrillKept:
        return await self._keep(principal, READ_DRILL, read_told(body))

    async def _lose_node_done(self, principal: Principal, body: drills.LossReport) -> drills.DrillKept:
        node = check_name(body.forecast.node, "node")
        return await self._keep(principal, LOSS_DRILL, loss_told(body), node)

    async def _keep(self, principal: Principal, kind: str, message: str, node: str = "") -> drills.DrillKept:
        row = EventRow(FORMAT, self._catalog.now_ms(), kind, principal.name, message, node=node)
        (event,) = await self._catalog.append_events([row])
        return drills.DrillKept(event)


def read_told(found: drills.ReadDrill) -> str:
    """The evidence of a read drill in one line: counts, bytes, rate, seed."""
    scope = f"namespace {found.namespace}" if found.namespace else "all namespaces"
    word = "interrupted" if found.interrupted else "passed" if found.passed else "not passed"
    told = (
        f"{word}: {found.read_files} of {found.files} sampled files of {scope} read from copies alone, "
        f"{found.read_bytes} bytes at {found.bytes_per_s:.0f} bytes/s in {found.took_s:.1f} s; "
        f"{found.failed_files} failed, {found.away_files} out of reach, {found.debt_files} not copied yet "
        f"({found.debt_bytes} bytes, oldest {found.debt_oldest_s:.0f} s), {found.copyless_files} without copies by "
        f"policy, {found.replaced_files} replaced meanwhile; seed {found.seed}, {found.wanted} wanted"
    )
    return told + "".join(f"; {each.what[:_TEXT_MAX]}: {each.why[:_TEXT_MAX]}" for each in found.problems[:_TOLD_MAX])


def loss_told(report: drills.LossReport) -> str:
    """The evidence of a simulated loss in one line."""
    found, counts = report.forecast, report.counts
    word = "passed" if report.passed else "not passed"
    pace = f"{found.eta_s:.0f} s" if found.eta_s is not None else "an unknown time"
    return (
        f"{word}: without it {counts.unavailable_files} files ({counts.unavailable_bytes} bytes) would be unavailable, "
        f"{counts.lost_files} of them lost if it never came back, {counts.doubtful_files} doubtful; "
        f"{found.served_extents} of {found.extents} extents whole elsewhere, {found.under_protected_extents} "
        f"under-protected; {found.rebuild_extents} locations ({found.rebuild_bytes} bytes) would be rebuilt in {pace}, "
        f"{found.blocked_extents} extents could not be, {found.crowded_extents} only too close to another copy"
        + "".join(f"; {each.namespace}/{each.path[:_TEXT_MAX]} {each.state}" for each in report.files[:_TOLD_MAX])
    )
