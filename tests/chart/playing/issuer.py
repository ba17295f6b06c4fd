"""Plays cert-manager: the Secrets that its Certificates ask for, signed by a throwaway authority."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from chart.fakeapi.kinds import Json
from copypool.dev.certificates import issue, make_authority

_DAYS = 2


class Issuer:
    """One authority."""

    def __init__(self) -> None:
        self._authority = make_authority("chart", datetime.now(UTC), days=_DAYS)

    def secrets(self, objects: Sequence[Json]) -> Iterator[Json]:
        """A Secret for every Certificate among the objects."""
        now = datetime.now(UTC)
        for item in objects:
            if item["kind"] != "Certificate":
                continue
            spec = item["spec"]
            hosts = [*spec["dnsNames"], *spec["ipAddresses"]]
            pair = issue(
                self._authority,
                item["metadata"]["name"],
                hosts,
                now + timedelta(days=_DAYS),
                not_before=now - timedelta(days=1),
                calls="client auth" in spec["usages"],
            )
            content = {"ca.crt": self._authority.certificate, "tls.crt": pair.certificate, "tls.key": pair.key}
            yield {
                "kind": "Secret",
                "metadata": {"name": spec["secretName"]},
                "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
            }
