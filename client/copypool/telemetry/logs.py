"""Log records of a server: one line each on stderr, for people (`console`) or for machines (`json`).

Every record names its process (`node` or `coordinator`) and, where there is one, the trace of the work it was written
in. What concerns an extent or a volume says so as a field: `log.warning("...", extra={"extent": extent})`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

from copypool.telemetry import tracing

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

#: Fields that a record may have besides; see the module. `node`: whom a coordinator writes about.
FIELDS = ("extent", "volume", "node")


class LevelCounts(logging.Handler):
    """Counts records of level warning and above, for /metrics."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts = {"warning": 0, "error": 0, "critical": 0}

    def emit(self, record: logging.LogRecord) -> None:
        """Count one record."""
        level = record.levelname.lower()
        if level in self.counts:
            self.counts[level] += 1


class _WithContext(logging.Formatter):
    """Adds what is known of the work that a record was written in."""

    def __init__(self, process: Mapping[str, str]) -> None:
        super().__init__()
        self._process = dict(process)

    def _context(self, record: logging.LogRecord) -> dict[str, str | int]:
        found: dict[str, str | int] = {**self._process}
        trace = tracing.current()
        if trace is not None:
            found["trace_id"], found["span_id"] = trace.trace_id, trace.span_id
        for name in FIELDS:
            if (value := getattr(record, name, None)) is not None:
                found[name] = value
        return found


class JsonFormatter(_WithContext):
    """One JSON object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, context, `error` (with stack)."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _encodable(record.getMessage()),
            **self._context(record),
        }
        if record.exc_info:
            fields["error"] = _encodable(self.formatException(record.exc_info))
        return msgspec.json.encode(fields).decode("utf-8")


def _encodable(text: str) -> str:
    """Names of files that are no UTF-8 come as lone surrogates, which no JSON can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class ConsoleFormatter(_WithContext):
    """Time, level, logger, message; then what else is known as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a stack behind it where there is one."""
        context = self._context(record)
        for name in (*self._process, "span_id"):
            context.pop(name, None)
        # The message tells extent and volume itself.
        tail = f" trace_id={context['trace_id']}" if "trace_id" in context else ""
        time = f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%d %H:%M:%S}.{int(record.msecs):03d}Z"
        line = f"{time} {record.levelname} {record.name}: {record.getMessage()}{tail}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(log_format: LogFormat, level: str, process: Mapping[str, str], stream: TextIO | None = None) -> LevelCounts:
    """Send every record of this process to `stream` (stderr); once, at its start. What it returns counts them."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else ConsoleFormatter(process))
    counts = LevelCounts()
    root = logging.getLogger()
    root.handlers[:] = [handler, counts]
    root.setLevel(level.upper())
    return counts
