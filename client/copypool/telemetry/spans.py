"""Spans to an OpenTelemetry collector: the extra `copypool[otel]`, off unless the setting `trace_export` says "otlp".

Servers hand every finished request, pull and step of a controller over (`tracing.ended`); those of recorded traces are
queued here and sent by a thread of the SDK's, bounded: what does not fit is dropped, and nobody waits. Where to send to
and with what headers, certificates and resource attributes is said by OpenTelemetry's own environment variables
(`OTEL_EXPORTER_OTLP_ENDPOINT`, ...).

A trace is recorded if its caller records it (the sampled flag of `traceparent`), and besides a share of all others,
chosen by the trace id: so every process of the cluster chooses the same ones.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from copypool.protocol.errors import BY_CODE
from copypool.telemetry import tracing
from copypool.telemetry.process import package_version
from copypool.telemetry.tracing import Span, Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import SpanContext

TraceExport = Literal["off", "otlp"]

_CHOOSING_BITS = 56  #: the low ones of a trace id: W3C Trace Context wants those to be random


def trouble(export: TraceExport) -> str:
    """Why spans cannot be exported as the setting says; "": they can."""
    if export == "off" or _is_installed():
        return ""
    return 'trace_export = "otlp" needs OpenTelemetry: pip install "copypool[otel]"'


def export(service: str, name: str, ratio: float, processor: SpanProcessor | None = None) -> Callable[[], None]:
    """From now on send the spans of recorded traces, as process `name` of `service`. What it returns ends that.

    Ending sends what is queued, blocking, for some seconds at most. `processor` is for who has one already.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanKind, Status, StatusCode

    sending = _to_collector() if processor is None else processor
    scope = InstrumentationScope("copypool", package_version())
    resource = Resource.create(
        {"service.name": service, "service.instance.id": name, "service.version": package_version()}
    )
    kinds = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL}
    well, failed = Status(StatusCode.UNSET), StatusCode.ERROR

    def ended(span: Span) -> None:
        if not is_recorded(span.trace, ratio):
            return
        began_ns = round(span.began_unix_s * 1e9)
        sending.on_end(
            ReadableSpan(
                span.name,
                context=_context(span.trace, span.trace.span_id),
                parent=_context(span.trace, span.trace.parent_id) if span.trace.parent_id else None,
                resource=resource,
                attributes={"copypool.code": span.code, **span.attributes},
                kind=kinds[span.kind],
                status=Status(failed, span.code) if is_failure(span.code) else well,
                start_time=began_ns,
                end_time=began_ns + round(span.took_s * 1e9),
                instrumentation_scope=scope,
            )
        )

    tracing.set_sink(ended)

    def end() -> None:
        tracing.set_sink(None)
        sending.shutdown()

    return end


def follow_caller() -> None:
    """For programs with OpenTelemetry: calls of the SDK become part of the span that the program is in."""
    from opentelemetry.trace import get_current_span

    def ambient() -> str:
        context = get_current_span().get_span_context()
        if not context.is_valid:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    tracing.set_sink(None, ambient)


def is_recorded(trace: Trace, ratio: float) -> bool:
    """Whether this trace is one of those that are kept; see the module."""
    chosen = int(trace.trace_id, 16) & ((1 << _CHOOSING_BITS) - 1)
    return trace.sampled or chosen < ratio * (1 << _CHOOSING_BITS)


def is_failure(code: str) -> bool:
    """Whether it is our side's: a file that is not there, or a caller that went away, is none."""
    if code in ("ok", "gone"):
        return False
    error = BY_CODE.get(code)
    return error is None or error.http_status >= 500


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ModuleNotFoundError:  # of one of the packages around it
        return False


def _to_collector() -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())


def _context(trace: Trace, span_id: str) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(int(trace.trace_id, 16), int(span_id, 16), False, TraceFlags(TraceFlags.SAMPLED))
