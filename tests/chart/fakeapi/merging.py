"""JSON merge patches (RFC 7386) and server-side apply by one manager. Pure."""

from __future__ import annotations

import copy
from typing import Any


def merge_patch(target: Any, patch: Any) -> Any:
    """`target` with `patch` put in: null deletes, lists are replaced."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def apply(live: Any, applied_before: Any, applied: Any) -> Any:
    """What server-side apply makes of a live object: a field that its manager no longer names goes.

    Lists are taken as a whole, as the server does with those that it declares atomic; of the others a single manager
    sees no difference.
    """
    if not isinstance(applied, dict) or not isinstance(live, dict):
        return copy.deepcopy(applied)
    before = applied_before if isinstance(applied_before, dict) else {}
    result = {key: value for key, value in live.items() if key in applied or key not in before}
    for key, value in applied.items():
        result[key] = apply(live.get(key), before.get(key), value)
    return result
