"""Spans as OpenTelemetry's own SDK gets them: which traces are kept, who is whose parent, what counts as a failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from copypool.protocol.errors import NotFound, Unavailable
from copypool.telemetry import spans, tracing
from copypool.telemetry.tracing import Trace

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.adopt(None)
    end = spans.export("copypool-node", "node1", 0.0, SimpleSpanProcessor(exporter))
    yield exporter
    end()
    tracing.adopt(None)


def test_a_span_tells_whose_part_it_is_and_where_it_was_made(exported: InMemorySpanExporter) -> None:
    trace = tracing.accept(GIVEN)
    with tracing.operation("copy", extent=7) as copy:
        pass
    tracing.ended(trace, "PUT files", "server", 0.25, "ok")
    inner, outer = exported.get_finished_spans()
    assert outer.context is not None
    assert inner.context is not None
    assert outer.parent is not None
    assert inner.parent is not None
    assert f"{outer.context.trace_id:032x}" == f"{inner.context.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert f"{outer.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert inner.parent.span_id == outer.context.span_id
    assert f"{inner.context.span_id:016x}" == copy.span_id
    assert (outer.kind, inner.kind) == (SpanKind.SERVER, SpanKind.INTERNAL)
    assert outer.start_time is not None
    assert outer.end_time is not None
    assert outer.end_time - outer.start_time == 250_000_000
    assert dict(inner.attributes or {}) == {"copypool.code": "ok", "extent": 7}
    assert outer.resource.attributes["service.name"] == "copypool-node"
    assert outer.resource.attributes["service.instance.id"] == "node1"


def test_what_the_caller_does_not_record_is_not_sent(exported: InMemorySpanExporter) -> None:
    with tracing.continuing(GIVEN[:-2] + "00"), tracing.operation("put"):
        pass
    with tracing.operation("put"):
        pass
    assert exported.get_finished_spans() == ()


def test_only_failures_of_our_side_are_errors(exported: InMemorySpanExporter) -> None:
    with tracing.continuing(GIVEN):
        for error in (NotFound("x"), Unavailable("x"), ZeroDivisionError("x")):
            with pytest.raises(type(error)), tracing.operation("get"):
                raise error
    assert [span.status.status_code for span in exported.get_finished_spans()] == [
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.ERROR,
    ]
    assert not spans.is_failure("gone")
    assert spans.is_failure("bug")


def test_the_share_of_other_traces_is_chosen_by_the_id_and_so_the_same_everywhere() -> None:
    traces = [Trace() for _ in range(4000)]
    chosen = {trace.trace_id for trace in traces if spans.is_recorded(trace, 0.25)}
    assert 800 < len(chosen) < 1200
    again = [Trace(trace.traceparent) for trace in traces]
    assert {trace.trace_id for trace in again if spans.is_recorded(trace, 0.25)} == chosen
    assert all(spans.is_recorded(trace, 1.0) and not spans.is_recorded(trace, 0.0) for trace in traces)


def test_after_its_end_nothing_is_recorded() -> None:
    exporter = InMemorySpanExporter()
    spans.export("copypool-node", "node1", 1.0, SimpleSpanProcessor(exporter))()
    with tracing.operation("put"):
        pass
    assert exporter.get_finished_spans() == ()


def test_calls_of_the_sdk_are_part_of_the_programs_own_span() -> None:
    spans.follow_caller()
    provider = TracerProvider(shutdown_on_exit=False)
    try:
        tracing.adopt(None)
        with (
            provider.get_tracer("a program").start_as_current_span("its work") as span,
            tracing.operation("put") as put,
        ):
            assert put.trace_id == f"{span.get_span_context().trace_id:032x}"
            assert put.parent_id == f"{span.get_span_context().span_id:016x}"
            assert put.sampled
        with tracing.operation("put") as put:
            assert put.parent_id == ""
    finally:
        tracing.set_sink(None)
        provider.shutdown()


@pytest.mark.parametrize(
    "missing", ["opentelemetry", "opentelemetry.exporter", "opentelemetry.exporter.otlp.proto.http"]
)
def test_an_export_without_the_extra_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    assert spans.trouble("otlp") == ""
    for name in [name for name in sys.modules if name == missing or name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert "copypool[otel]" in spans.trouble("otlp")
    assert spans.trouble("off") == ""
