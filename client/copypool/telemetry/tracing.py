"""Trace context (W3C Trace Context, level 1): one id from the client through coordinator and node to the copy.

Whoever takes a request in `accept`s its `traceparent`; whoever sends one adds `outgoing()`. Nothing is parsed or made
before somebody asks for it - an outgoing call, a log record, a span - so that a request which needs none of them pays
for one header look-up and one context variable.

Several requests may share a call (a group commit, a joined look-up): it goes under the first one's id.
Spans go to a sink, if one is set (see `spans`); without, ending one is a comparison.
"""

from __future__ import annotations

import functools
import random
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SpanKind = Literal["server", "internal"]

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED = 1
#: Ids need be unique, not secret; the system's generator would cost a system call for each.
_random = random.Random()


class Trace:
    """The place of one piece of work in a trace: parsed from what was `given`, or made, at the first look."""

    __slots__ = ("_given", "_span_id", "_trace_id", "parent_id", "sampled")

    def __init__(self, given: str = "") -> None:
        self._given = given
        self._trace_id = ""
        self._span_id = ""
        self.parent_id = ""  #: the caller's span; "" at the root. Known after the first look at an id.
        self.sampled = False  #: the caller records this trace. Known after the first look at an id.

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        if not self._trace_id:
            self._resolve()
        return self._trace_id

    @property
    def span_id(self) -> str:
        """16 hex digits: this piece of work."""
        if not self._span_id:
            self._resolve()
        return self._span_id

    @property
    def traceparent(self) -> str:
        """The header for calls that belong to this work."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.sampled else 0:02x}"

    def _resolve(self) -> None:
        found = _FORM.fullmatch(self._given) if self._given else None
        if found is not None and _is_valid(found):
            self.parent_id = found[3]
            self.sampled = bool(int(found[4], 16) & _SAMPLED)
            self._trace_id = found[2]
        else:
            self._trace_id = f"{_random.getrandbits(128) or 1:032x}"
        self._span_id = f"{_random.getrandbits(64) or 1:016x}"


def _is_valid(found: re.Match[str]) -> bool:
    # Later versions may add fields behind the four known ones; version 00 may not, and ff is none.
    return found[1] != "ff" and found[2] != _NO_TRACE and found[3] != _NO_SPAN and not (found[1] == "00" and found[5])


_current: ContextVar[Trace | None] = ContextVar("copypool_trace", default=None)


@dataclass(frozen=True, slots=True)
class Span:
    """One finished piece of work."""

    trace: Trace
    name: str
    kind: SpanKind
    began_unix_s: float
    took_s: float
    code: str  #: "ok" or the code of the error that ended it
    attributes: dict[str, str | int] = field(default_factory=dict)


_sink: Callable[[Span], None] | None = None
#: Asked for a `traceparent` where work begins without one: the caller's own tracing library, if there is one.
_ambient: Callable[[], str] | None = None


def set_sink(sink: Callable[[Span], None] | None, ambient: Callable[[], str] | None = None) -> None:
    """From now on every span that ends goes to `sink`, which must not block. None: nothing is recorded."""
    global _sink, _ambient
    _sink, _ambient = sink, ambient


def recording() -> bool:
    """Whether a span that ends now is recorded."""
    return _sink is not None


def current() -> Trace | None:
    """What the running task works for."""
    return _current.get()


def adopt(trace: Trace | None) -> None:
    """The running task works for this from now on."""
    _current.set(trace)


def accept(given: str | None) -> Trace:
    """A request came in, with this `traceparent` or none: the running task works for it from now on."""
    trace = Trace(given or "")
    _current.set(trace)
    return trace


def outgoing() -> str:
    """`traceparent` of a call that is made now."""
    trace = _current.get()
    return (trace if trace is not None else Trace()).traceparent


@contextmanager
def continuing(traceparent: str) -> Iterator[Trace]:
    """What is done inside belongs to the trace of this header; to a new one when the header is not valid."""
    trace = Trace(traceparent)
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


@contextmanager
def within(trace: Trace | None) -> Iterator[None]:
    """What is done inside belongs to this trace; None changes nothing. Not around a `yield` of a generator."""
    token = _current.set(trace) if trace is not None else None
    try:
        yield
    finally:
        if token is not None:
            _current.reset(token)


@contextmanager
def operation(name: str, traceparent: str = "", /, **attributes: str | int) -> Iterator[Trace]:
    """One piece of work of this process, with what it does inside.

    It is part of the trace of `traceparent`, else of the current one, else the root of a new one.
    """
    above = _current.get()
    if not traceparent and above is not None:
        traceparent = above.traceparent
    elif not traceparent and _ambient is not None:
        traceparent = _ambient()
    trace = Trace(traceparent)
    token = _current.set(trace)
    began_s = time.monotonic()
    code = "ok"
    try:
        yield trace
    except BaseException as exc:
        code = str(getattr(exc, "code", "") or type(exc).__name__)
        raise
    finally:
        _current.reset(token)
        ended(trace, name, "internal", time.monotonic() - began_s, code, attributes)


def traced(name: str) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Make each call of a coroutine function an `operation`."""

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with operation(name):
                return await function(*args, **kwargs)

        return call

    return decorate


def ended(
    trace: Trace, name: str, kind: SpanKind, took_s: float, code: str, attributes: dict[str, str | int] | None = None
) -> None:
    """This piece of work is done."""
    if _sink is not None:
        _sink(Span(trace, name, kind, time.time() - took_s, took_s, code, attributes or {}))
