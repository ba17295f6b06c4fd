"""The kinds of number that settings are made of, with their bounds. Units are in the settings' names."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
WholeSeconds = Annotated[int, Meta(ge=1)]
BytesPerSecond = Annotated[int, Meta(ge=0)]

LogLevel = Literal["debug", "info", "warning", "error"]
