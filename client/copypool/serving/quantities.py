"""The kinds of number that settings are made of, with their bounds. Units are in the settings' names.

Every number has a least and a most. The most is far above what is of use: it is there against `inf` and digits
too many.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]  #: waits and periods within one process: a day at most
WholeSeconds = Annotated[int, Meta(ge=0, le=366 * 86_400)]  #: what the cluster waits with: a year at most
BytesPerSecond = Annotated[int, Meta(ge=0, le=1024**4)]

LogLevel = Literal["debug", "info", "warning", "error"]
