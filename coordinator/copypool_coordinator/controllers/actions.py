"""What controllers can ask for. Plain data; the runner is what performs it.

Every action names one step that is safe to repeat and to leave out. `key` says which of them are the same step, so
that one in flight is not started again; `lane` is what their number is bounded by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from copypool_coordinator.policy import LocationKey
from copypool_coordinator.rows import ProcessRow

ActionKey: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class MarkAway:
    """Write down since when a node is away."""

    node: int

    @property
    def key(self) -> ActionKey:
        return ("node", self.node)

    @property
    def lane(self) -> str:
        return "catalog"


@dataclass(frozen=True, slots=True)
class MarkReturned:
    """The node has a session again."""

    node: int

    @property
    def key(self) -> ActionKey:
        return ("node", self.node)

    @property
    def lane(self) -> str:
        return "catalog"


@dataclass(frozen=True, slots=True)
class SetReadonly:
    """A volume refused a write: nothing more is written there until an operator says so."""

    volume: int
    why: str

    @property
    def key(self) -> ActionKey:
        return ("access", self.volume)

    @property
    def lane(self) -> str:
        return "catalog"


@dataclass(frozen=True, slots=True)
class SealExtent:
    """End an extent whose writer cannot or must not append any more, at its committed length."""

    extent: int
    fencing: bool  #: the writer's session is over, and the transaction compares that it is
    why: str

    @property
    def key(self) -> ActionKey:
        return ("seal", self.extent)

    @property
    def lane(self) -> str:
        return "catalog"


@dataclass(frozen=True, slots=True)
class Reserve:
    """Put a new location (`copying`, length 0) into the extent's row."""

    extent: int
    volume: int
    pool: int
    repair: bool  #: it replaces a location that was there, else it is the first copy
    why: str
    cause: LocationKey | None = None  #: the damaged location that it replaces

    @property
    def key(self) -> ActionKey:
        # One at a time for an extent: the next one must know the node of this one.
        return ("reserve", self.extent)

    @property
    def lane(self) -> str:
        return "catalog"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a destination may pull from."""

    node: int
    volume: int
    length: int


@dataclass(frozen=True, slots=True)
class Pull:
    """Tell the destination how far to bring its location, and from where, best source first."""

    location: LocationKey
    node: int
    epoch: int
    up_to: int
    sealed: bool
    sources: tuple[Source, ...]
    repair: bool

    @property
    def key(self) -> ActionKey:
        # A rest after failures is about this session: a node that has come back is asked at once.
        return ("pull", *self.location, self.epoch)

    @property
    def lane(self) -> str:
        return f"pull {self.node}"


@dataclass(frozen=True, slots=True)
class Verify:
    """Tell a node to read a location back from its medium."""

    location: LocationKey
    node: int
    epoch: int
    length: int
    sealed: bool
    routine: bool  #: bounded by the scrub rate
    why: str
    pause_ms: int = 0  #: a routine one: how long its volume rests from them afterwards

    @property
    def key(self) -> ActionKey:
        return ("verify", *self.location, self.epoch)

    @property
    def lane(self) -> str:
        return f"verify {self.node}"


@dataclass(frozen=True, slots=True)
class Decide:
    """Remember that a location is not needed any more: from now on its survivors are read back."""

    location: LocationKey

    @property
    def key(self) -> ActionKey:
        return ("decide", *self.location)

    @property
    def lane(self) -> str:
        return "memory"


@dataclass(frozen=True, slots=True)
class BeginDrop:
    """Stop counting a location: `dropping`. The transaction checks the last-copy rule once more."""

    location: LocationKey
    why: str
    wanted: int = 0  #: other locations that must be there; 0: as many as the class wants
    forced: bool = False  #: an operator was shown that bytes may die

    @property
    def key(self) -> ActionKey:
        return ("drop", *self.location)

    @property
    def lane(self) -> str:
        return "catalog"


@dataclass(frozen=True, slots=True)
class CallOff:
    """Let a `dropping` location stay: what it was not needed beside is no longer there. Safe at any time."""

    location: LocationKey
    why: str

    @property
    def key(self) -> ActionKey:
        return ("drop", *self.location)

    @property
    def lane(self) -> str:
        return "catalog"


@dataclass(frozen=True, slots=True)
class Forget:
    """Take a `dropping` location on a volume that is given up out of the row; whatever is there stays there.

    The transaction before it checks the last-copy rule once more.
    """

    location: LocationKey
    wanted: int  #: other locations that must be there
    forced: bool = False

    @property
    def key(self) -> ActionKey:
        return ("drop", *self.location)

    @property
    def lane(self) -> str:
        return "catalog"


@dataclass(frozen=True, slots=True)
class FinishDrop:
    """Let the node delete exactly this generation, then take the location out of the row.

    The transaction before it checks the last-copy rule once more, and is the point of no return.
    """

    location: LocationKey
    node: int
    wanted: int  #: other locations that must be there
    forced: bool = False  #: an operator was shown that bytes may die

    @property
    def key(self) -> ActionKey:
        return ("drop", *self.location)

    @property
    def lane(self) -> str:
        return f"drop {self.node}"


@dataclass(frozen=True, slots=True)
class WriteProcess:
    """Write down how far a process is, or that it has ended; with it the intents and volumes that end with it."""

    process: str
    mod_revision: int  #: of the row that this was planned from
    row: ProcessRow
    give_back: tuple[int, ...] = ()  #: volumes whose intent, and access mode before, is as it was
    remove_volume: int = 0  #: a volume that holds nothing any more

    @property
    def key(self) -> ActionKey:
        return ("process", self.process)

    @property
    def lane(self) -> str:
        return "catalog"


@dataclass(frozen=True, slots=True)
class TrimProcesses:
    """Delete the oldest ended processes beyond those that are kept."""

    processes: tuple[str, ...]

    @property
    def key(self) -> ActionKey:
        return ("processes",)

    @property
    def lane(self) -> str:
        return "catalog"


Action: TypeAlias = (
    MarkAway
    | MarkReturned
    | SetReadonly
    | SealExtent
    | Reserve
    | Pull
    | Verify
    | Decide
    | BeginDrop
    | CallOff
    | FinishDrop
    | Forget
    | WriteProcess
    | TrimProcesses
)
