"""Log lines: what each of the two forms holds, and that a machine reads back every JSON line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from copypool.telemetry import logs, tracing
from copypool.telemetry.logs import LevelCounts, LogFormat

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
GIVEN = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
log = logging.getLogger("copypool.tests.logs")


class Written:
    """What a process that logs this way writes."""

    def __init__(self, log_format: LogFormat, level: str = "info") -> None:
        self._stream = io.StringIO()
        self.counts: LevelCounts = logs.set_up(log_format, level, {"node": "n1"}, self._stream)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def json(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_json_line_tells_time_level_process_trace_and_extent() -> None:
    written = Written("json")
    with tracing.continuing(GIVEN) as trace:
        log.warning("extent %d: %s", 7, "a\nline", extra={"extent": 7, "volume": "v"})
    (line,) = written.json()
    assert datetime.fromisoformat(str(line.pop("time"))).utcoffset() is not None
    assert line == {
        "level": "warning",
        "logger": "copypool.tests.logs",
        "message": "extent 7: a\nline",
        "node": "n1",
        "trace_id": TRACE_ID,
        "span_id": trace.span_id,
        "extent": 7,
        "volume": "v",
    }


def test_without_a_trace_there_is_none_in_the_line() -> None:
    written = Written("json")
    tracing.adopt(None)
    log.info("started")
    assert written.json()[0].keys() == {"time", "level", "logger", "message", "node"}


def test_a_stack_is_one_line_of_json() -> None:
    written = Written("json")
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("it failed")
    (line,) = written.json()
    assert line["level"] == "error"
    assert "ValueError: no" in str(line["error"])


@pytest.mark.parametrize("text", ["caf\u00e9", "\udcff", "nul \x00 and \x1b[31m", '"quotes" \\'])
def test_any_text_gives_a_line_that_can_be_read(text: str) -> None:
    written = Written("json")
    log.warning("%s", text)
    assert len(written.json()) == 1


def test_a_console_line_is_for_people() -> None:
    written = Written("console")
    with tracing.continuing(GIVEN):
        log.warning("extent %d is bad", 7, extra={"extent": 7})
    assert written.text.endswith(f"Z WARNING copypool.tests.logs: extent 7 is bad trace_id={TRACE_ID}\n")


def test_records_are_counted_by_level_from_warning_up() -> None:
    written = Written("console", "error")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.getLogger().log(level, "x")
    assert written.counts.counts == {"warning": 0, "error": 1, "critical": 1}
    assert len(written.text.splitlines()) == 2
