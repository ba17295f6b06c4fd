"""What a process's /metrics page says, as numbers. Blocking."""

from __future__ import annotations

import urllib.request


def sample(url: str, name: str) -> float:
    """The sum of a metric over its labels; 0 when the page has no sample of it."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    values = (line.rpartition(" ") for line in lines if line[:1] != "#")
    return sum(float(value) for key, _, value in values if key.partition("{")[0] == name)
