"""Long jobs: what operators ask coordinators for, and what they are told of it. Structs only, as in `api`.

Every verb declares what is wanted in the catalog; controllers do the work. So a process outlives whoever asked for it,
and every leader. All of these are POST /rpc/<name>, role operator.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

ProcessVerb: TypeAlias = Literal["restore", "audit", "move", "drain", "rebalance", "delete", "backup", "rewrite"]
ProcessState: TypeAlias = Literal["running", "done", "incomplete", "cancelled", "failed"]
VolumeIntent: TypeAlias = Literal["", "drain", "discard", "force"]

SKIPPED_MAX = 100  #: entries of a list of what was, or would be, skipped; its total counts all
PROCESSES_MAX = 1000  #: ended processes that are kept
RUNNING_MAX = 64  #: processes at a time


class ProcessRequest(msgspec.Struct, omit_defaults=True):
    """/rpc/process_start (answer `ProcessInfo`) and /rpc/process_preview (answer `Preview`, which changes nothing).

    restore: one of `volume`, `node`, `pool`, `namespace` (with `prefix`). audit: `volume`. move: `volume`.
    drain: `node`. rebalance: `pool` or nothing. delete: `volume`. backup: `pool`, `to`. rewrite: `namespace`.
    """

    verb: ProcessVerb
    volume: str = ""
    node: str = ""
    pool: str = ""
    namespace: str = ""
    prefix: str = ""
    to: list[str] = []  #: backup: these copy pools; none: every copy pool that the pool's bytes belong in
    fix: bool = False  #: audit: go on until all that was found is mended
    discard_data: bool = False  #: delete: also when it is not empty, as long as every byte has another good location
    force: str = ""  #: delete: the volume's name once more: also when bytes die with it


class SkippedEntry(msgspec.Struct, array_like=True):
    """One thing that was, or would be, left out."""

    extent: int
    bytes: int
    records: int
    why: str


class SourceShare(msgspec.Struct, array_like=True):
    """What one volume would give."""

    volume: str
    extents: int
    bytes: int


class Preview(msgspec.Struct):
    """What a process would do if it began now: from the same function that the process goes by."""

    verb: ProcessVerb
    what: str
    extents: int
    bytes: int
    records: int  #: files and parts of files in these extents, deletes among them
    sources: list[str]  #: volumes that would be read, by name: those of `shares`, and those that are merged from
    blocked: list[SkippedEntry]  #: what cannot be done as things are, and why; the first 100
    blocked_extents: int
    blocked_bytes: int
    blocked_records: int
    dies_extents: int  #: delete: extents whose last good location would go
    eta_s: float | None  #: from the pace of the last process of this kind; None: there was none
    notes: list[str]  #: what an operator should know before
    shares: list[SourceShare] = []  #: what is whole somewhere, by the volume that is read first
    #: Extents without a whole location: they succeed only if several bad or leaving ones together have every block,
    #: which is known when it is tried. Not among `blocked`; the first 100.
    merged: list[SkippedEntry] = []
    merged_extents: int = 0
    merged_bytes: int = 0
    merged_records: int = 0


class ProcessInfo(msgspec.Struct):
    """Answer of /rpc/process_start, /rpc/process and /rpc/process_cancel."""

    id: str  #: sorts by time
    verb: ProcessVerb
    what: str
    who: str
    state: ProcessState
    created_unix_s: float
    ended_unix_s: float | None
    total_extents: int
    total_bytes: int
    done_extents: int
    done_bytes: int
    bytes_per_s: float
    eta_s: float | None
    outcome: str  #: a sentence; while it runs: what it waits for, or ""
    skipped: list[SkippedEntry]  #: the first 100
    skipped_total: int
    found_damaged: int  #: audit: locations whose bytes were found bad


class ProcessAsk(msgspec.Struct):
    """/rpc/process and /rpc/process_cancel."""

    id: str


class ProcessListRequest(msgspec.Struct, omit_defaults=True):
    """/rpc/processes."""

    running: bool = False  #: only those
    limit: int = 100


class ProcessList(msgspec.Struct):
    """Answer of /rpc/processes: newest first."""

    items: list[ProcessInfo]


class ReleaseRequest(msgspec.Struct, omit_defaults=True):
    """/rpc/volume_release: a volume, or a node's volumes, that were emptied take bytes again. Answer `ReleaseReply`."""

    volume: str = ""
    node: str = ""


class ReleaseReply(msgspec.Struct):
    volumes: list[str]  #: those whose intent ended
