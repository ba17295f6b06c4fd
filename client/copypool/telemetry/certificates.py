"""Certificates of a server, for /metrics: until when they are valid, and whether renewed files were taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from copypool.telemetry.metrics import Family, Page
from copypool.tls import Rotated

EXPIRES = Family(
    "copypool_certificate_expires_time_seconds", "gauge", "When the certificate expires, Unix time.", ("use",)
)
LOADS = Family(
    "copypool_certificate_loads_total", "counter", "TLS files taken over, the first time included.", ("use",)
)
REFUSED = Family(
    "copypool_certificate_files_refused", "gauge", "1: the files of now cannot be used; those of before are.", ("use",)
)

FAMILIES = (EXPIRES, LOADS, REFUSED)


def page(of_use: Mapping[str, Rotated[Any] | None]) -> Page:
    """`of_use`: "server" for the process's own certificate, "etcd" for the one that it shows there; None: no TLS."""
    known = [((use,), rotated) for use, rotated in sorted(of_use.items()) if rotated is not None]
    return (
        (EXPIRES, [(use, each.leaf.not_after_unix_s) for use, each in known if each.leaf is not None]),
        (LOADS, [(use, each.loads) for use, each in known]),
        (REFUSED, [(use, bool(each.failure)) for use, each in known]),
    )
