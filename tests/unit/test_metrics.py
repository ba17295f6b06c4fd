"""Metrics: the text format as Prometheus' own parser reads it, names by its conventions, the reference up to date."""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
import pytest

from copypool.protocol.api import StatusReply
from copypool.protocol.protection import NamespaceProtection
from copypool.telemetry import certificates
from copypool.telemetry.metrics import Family, Histogram, Requests, by_label, one, render, unit_of
from copypool.telemetry.process import LoopLag
from copypool.tls import Rotated, client_context
from copypool_coordinator import protection_metrics
from copypool_coordinator.etcd import EndpointStatus
from copypool_coordinator.etcd_size import EtcdSize, Growth
from kit import metrics_page, metrics_reference
from kit.certificates import Authority
from kit.eventually import eventually

_UNITS = ("seconds", "bytes", "ratio", "days", "records", "files", "info", "bytes_per_second")


def test_the_page_reads_as_it_was_meant() -> None:
    count = Family("a_requests_total", "counter", 'Help with \\ and "quotes".', ("route", "code"))
    lasting = Family("a_seconds", "histogram", "Time.", ("route",))
    size, never = Family("a_bytes", "gauge", "Size."), Family("a_limit_bytes", "gauge", "None yet.", ("volume",))
    requests = Requests()
    requests.count('GET "x\\y"\n', "ok", 0.003)
    requests.count('GET "x\\y"\n', "not_found", 20.0)
    text = render(
        [(count, requests.totals()), (lasting, requests.durations()), (size, one(math.inf)), (never, by_label({}))]
    )
    found = metrics_page.check(text, (count, lasting, size, never))
    route = 'GET "x\\y"\n'
    totals = {(each.labels["route"], each.labels["code"]): each.value for each in found[count.name].samples}
    assert totals == {(route, "ok"): 1, (route, "not_found"): 1}
    buckets = {each.labels["le"]: each.value for each in found[lasting.name].samples if "le" in each.labels}
    assert (buckets["0.0025"], buckets["0.005"], buckets["10"], buckets["+Inf"]) == (0, 1, 1, 2)
    sums = {each.name: each.value for each in found[lasting.name].samples if "le" not in each.labels}
    assert sums == {"a_seconds_sum": pytest.approx(20.003), "a_seconds_count": 2}
    assert found[size.name].samples[0].value == math.inf
    assert found[never.name].samples == []
    assert requests.answered("not_found") == 1


def test_a_bucket_holds_its_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert [line.rpartition(" ")[2] for line in histogram.lines("x", "")] == ["1", "3", "4", "7.5", "4"]


@pytest.mark.parametrize("part", metrics_reference.FAMILIES)
def test_names_keep_to_prometheus_conventions(part: str) -> None:
    families = metrics_reference.FAMILIES[part]
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.name.startswith(("copypool_", "process_")), family
        assert family.name.endswith("_total") == (family.kind == "counter"), family
        assert not family.name.endswith(("_ms", "_s", "_percent", "_count", "_sum", "_bucket")), family
        assert family.help.endswith("."), family
        if family.kind == "histogram":
            assert unit_of(family) in _UNITS, family


@pytest.mark.parametrize("part", metrics_reference.FAMILIES)
def test_the_reference_is_current(part: str) -> None:
    written = (metrics_reference.ROOT / part / "METRICS.md").read_text(encoding="utf-8")
    assert written == metrics_reference.page(part), "run `make reference`"


async def test_the_lag_of_the_event_loop_is_measured_until_it_is_stopped() -> None:
    lag = LoopLag()
    lag.start()
    await eventually(lambda: lag.seconds.total() >= 1, "it looked once")
    lag.stop()
    lag.stop()


def _growth(*samples: tuple[float, int]) -> Growth:
    growth = Growth()
    for now_s, used_bytes in samples:
        growth.note(now_s, used_bytes)
    return growth


def test_days_to_the_quota_follow_the_growth_of_what_is_in_use() -> None:
    growth = _growth(*[(minute * 60.0, 1_000_000 + minute * 6_000) for minute in range(61)])
    assert growth.bytes_per_s() == pytest.approx(100.0)
    assert growth.days_to(8_640_000 + 5_000_000, 5_000_000) == pytest.approx(1.0)
    assert growth.days_to(5_000_000, 5_000_000) == 0.0


def test_a_database_that_does_not_grow_or_was_hardly_watched_is_not_foretold() -> None:
    assert _growth((0.0, 10), (300.0, 1_000_000)).days_to(2_000_000, 10) == math.inf
    assert _growth(*[(minute * 60.0, 1_000_000 - minute) for minute in range(61)]).days_to(2_000_000, 10) == math.inf
    assert Growth().days_to(2_000_000, 10) == math.inf


def test_growth_is_bounded_by_one_sample_a_minute_for_a_day() -> None:
    growth = _growth(*[(second, second) for second in range(0, 3 * 86_400, 20)])
    assert len(growth._samples) == 24 * 60
    assert growth.bytes_per_s() == pytest.approx(1.0)


def test_etcd_counts_by_its_largest_member_and_keeps_what_it_knew_while_nobody_answers() -> None:
    members = [
        EndpointStatus("a", "3.5.21", 100, 80, alarms=("NOSPACE member:1",)),
        EndpointStatus("b", "3.5.21", 120, 70, alarms=("NOSPACE member:1",)),
        EndpointStatus("c", error="takes no connection"),
    ]
    known = EtcdSize.of(members, EtcdSize())
    assert known == EtcdSize(members=3, members_up=2, db_bytes=120, used_bytes=80, alarms=1)
    assert EtcdSize.of([EndpointStatus("a", error="x")], known) == EtcdSize(1, 0, 120, 80, 1)


def test_certificates_tell_their_end_and_whether_renewed_files_are_in_use(tmp_path: Path) -> None:
    certificate = Authority(tmp_path).issue("server")
    rotated = Rotated(certificate.files, client_context)

    def samples() -> dict[str, float]:
        text = render(certificates.page({"server": rotated, "etcd": None}))
        found = metrics_page.check(text, certificates.FAMILIES)
        assert all(each.labels == {"use": "server"} for family in found.values() for each in family.samples)
        return {name: family.samples[0].value for name, family in found.items()}

    assert rotated.leaf is not None
    first = {
        "copypool_certificate_expires_time_seconds": rotated.leaf.not_after_unix_s,
        "copypool_certificate_loads_total": 1,
        "copypool_certificate_files_refused": 0,
    }
    assert samples() == first
    certificate.certificate.write_text("no certificate")
    assert not rotated.look(time.time())
    assert samples() == first | {"copypool_certificate_files_refused": 1}


async def test_a_page_tells_of_the_namespaces_that_wait_longest_and_of_no_more() -> None:
    spaces = [NamespaceProtection(f"n{number}", [], 1, 1, float(number)) for number in range(1000)]
    status = msgspec.convert({**_STATUS, "namespaces": msgspec.to_builtins(spaces)}, StatusReply)
    text = render(protection_metrics.page(status, {f"n{number}": number for number in range(1000)}))
    page = metrics_page.check(text, protection_metrics.FAMILIES, partly=True)
    told = {int(each.labels["namespace_id"]) for each in page["copypool_namespace_debt_oldest_seconds"].samples}
    assert told == set(range(1000 - protection_metrics.NAMESPACES_MAX, 1000))


_STATUS = {
    "healthy": False,
    "reasons": [],
    "nodes": [],
    **dict.fromkeys(("leader", "coordinator", "brake"), ""),
    **dict.fromkeys(
        (
            *("files", "bytes", "as_of_unix_s", "debt_bytes", "debt_extents", "debt_oldest_s", "damaged_locations"),
            *("under_protected_extents", "unverified_bytes", "unavailable_files", "lost_files", "catalog_bytes"),
        ),
        0,
    ),
}
