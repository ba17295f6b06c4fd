"""Which events are new, when the log is read again and again. Pure.

An event's id is made before its transaction is, and every coordinator makes ids by itself. So an event may become
visible after others with higher ids: whoever goes on behind the highest id that it has seen loses events. Here each
reading begins a while before the highest id, longer than a transaction can take, and what was seen before is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from copypool.protocol.api import Event
from copypool_coordinator.eventlog import first_id

#: A reading begins this long before the newest event seen: deadline of a call to etcd and difference of clocks.
OVERLAP_S = 10.0


class Arrivals:
    """The newest events in the order of their arrival, each under a position that rises by one. Bounded.

    Positions are for `since`: whoever has seen all up to a position asks for what came after it.
    """

    def __init__(self, keep: int, now_unix_s: float) -> None:
        self._ring: deque[Event] = deque(maxlen=keep)
        self._known: set[str] = set()  #: ids at and above `begin`
        self._newest_unix_s = now_unix_s
        self.end = 0  #: position behind the last event

    @property
    def begin(self) -> str:
        """Cursor behind which the log is to be read."""
        return first_id(self._newest_unix_s - OVERLAP_S)

    def add(self, events: Iterable[Event]) -> None:
        """Take in what was read behind `begin`; what is known already changes nothing."""
        for event in events:
            if event.id in self._known:
                continue
            self._known.add(event.id)
            self._ring.append(event)
            self.end += 1
            self._newest_unix_s = max(self._newest_unix_s, time_of(event.id))
        begin = self.begin
        self._known = {each for each in self._known if each >= begin}

    def since(self, position: int) -> list[Event] | None:
        """What arrived from a position on; None: some of it is not kept any more."""
        missed = self.end - position
        if missed > len(self._ring):
            return None
        return list(self._ring)[len(self._ring) - missed :]


def rewound(event_id: str) -> str:
    """A cursor from which on everything is read that may have become visible after this event."""
    return first_id(time_of(event_id) - OVERLAP_S)


def time_of(event_id: str) -> float:
    """When the id was made, as unix seconds; raises ValueError for what is no id."""
    return int(event_id[:12], 16) / 1000
