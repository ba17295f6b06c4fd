"""One record against the row of its path: applied, recognised as a repeat, or refused, and the rows that follow. Pure.

Why a repeat is never applied twice: a row carries the write id that made it and those of up to four versions that it
replaced, directly or through others, within the retry window; a delete leaves a tombstone row with the same memory
for as long. A repeat says when its write id was first sent. What the memory cannot decide (first sent before the
window, or before the oldest of a full list) is refused as unknown, never guessed.

A write id names one write: one path, kind and content. Sent again with anything else it is refused, so the receipt of
a repeat is true of the bytes that were sent with it. Of a replaced version 8 bytes are kept for this: its kind and the
beginning of its digest.

Why a swept tombstone cannot be undercut: it stays for longer than a version may lie behind cluster time.
"""

from __future__ import annotations

from copypool.protocol.api import ANY_VERSION, SEGMENTS_INLINE_MAX
from copypool.protocol.internal import CommitEntry, EntryResult, RecordKind
from copypool.protocol.versions import BEHIND_MAX_MS, plausible, version_at
from copypool_coordinator.rows import FORMAT, FileFlag, FileRow, PartRow, Replaced

#: A write id first sent longer ago than this is no longer looked for.
RETRY_WINDOW_MS = 10 * 60 * 1000
#: How far the clocks of those who say "first sent" and "replaced" may lie apart.
CLOCK_SLACK_MS = 5_000
#: A client takes cluster time from a coordinator: "first sent" lies no further ahead than clocks lie apart.
FIRST_SENT_AHEAD_MAX_MS = 60_000
#: How long a row remembers what it replaced, and how long a tombstone row stays.
MEMORY_MS = RETRY_WINDOW_MS + 2 * CLOCK_SLACK_MS
#: Write ids that a row remembers. Only rows that are overwritten all the time hold many (38 bytes each).
RECENT_MAX = 64
#: How far apart the clocks may be when "more than `RECENT_MAX` replaced since it was first sent" is judged: small, or
#: honest first writes to a busy path would be taken for repeats whose fate is forgotten.
FORGOTTEN_SLACK_MS = 1_000

assert MEMORY_MS > BEHIND_MAX_MS, "a swept tombstone could be undercut by a late version"


def is_tombstone(row: FileRow) -> bool:
    """Whether the row says that there is no file."""
    return bool(row.flags & FileFlag.tombstone)


def is_live(row: FileRow | None) -> bool:
    """Whether there is a file."""
    return row is not None and not is_tombstone(row)


def too_old(entry: CommitEntry, now_ms: int) -> bool:
    """Whether the write id was first sent before the retry window."""
    return 0 < entry.first_sent_ms < now_ms - RETRY_WINDOW_MS


def needs_row(entry: CommitEntry, now_ms: int) -> bool:
    """Whether nothing can be decided before the row is read: all but a plain put, which guesses that there is none."""
    return (
        entry.kind != "file" or entry.if_version != 0 or too_old(entry, now_ms) or not plausible(entry.version, now_ms)
    )


def judge(entry: CommitEntry, row: FileRow | None, now_ms: int) -> EntryResult | None:
    """Why a file, manifest or tombstone record is refused, given the row of its path; None: it is applied."""
    if row is not None:
        repeated = _repeated(entry, row)
        if repeated is not None:
            return repeated
    if entry.first_sent_ms > now_ms + FIRST_SENT_AHEAD_MAX_MS:
        return EntryResult("invalid", 0, "the write id was first sent in the future: that cannot make a repeat safe")
    if too_old(entry, now_ms) or (row is not None and _forgotten(entry, row)):
        return EntryResult("unknown_write", 0, "this write id is too old to tell whether it was applied")
    if entry.kind == "tombstone" and not is_live(row):
        return EntryResult("not_found", 0, "there is no such file")
    if entry.if_absent and row is not None and is_live(row):
        return EntryResult("conflict", row.version, "the file exists")
    if entry.if_version and not _has_version(row, entry.if_version):
        current = row.version if row is not None and is_live(row) else 0
        said = f"the current version is {current}" if current else "there is no such file"
        return EntryResult("conflict", current, f"{said}: nothing was changed")
    if row is not None and entry.version <= row.version:
        return EntryResult("stale", row.version, "the version is not above the current one")
    return _implausible(entry, now_ms)


def judge_part(entry: CommitEntry, row: PartRow | None, now_ms: int) -> EntryResult | None:
    """Why a part record is refused, given the part's row; None: it is applied."""
    if row is not None and row.write_id == entry.write_id:
        if (row.size, row.digest) != (entry.size, entry.digest):
            return _other_write(row.version)
        return EntryResult("replayed", row.version)
    if row is not None and entry.version <= row.version:
        return EntryResult("stale", row.version, "the version is not above that of the part")
    return _implausible(entry, now_ms)


def _has_version(row: FileRow | None, version: int) -> bool:
    return row is not None and is_live(row) and version in (row.version, ANY_VERSION)


def _implausible(entry: CommitEntry, now_ms: int) -> EntryResult | None:
    if plausible(entry.version, now_ms):
        return None
    return EntryResult("stale", version_at(now_ms), "the version is too far from cluster time")


def _repeated(entry: CommitEntry, row: FileRow) -> EntryResult | None:
    if row.write_id == entry.write_id:
        same = (row.size, row.digest) == (entry.size, entry.digest) and _kind_of(row) == entry.kind
        return EntryResult("replayed", row.version) if same else _other_write(row.version)
    for replaced in row.recent or ():
        if replaced.write_id == entry.write_id:
            if not replaced.content:
                return EntryResult("unknown_write", replaced.version, "what this write id stored is not known any more")
            if replaced.content != _content(entry.kind, entry.digest):
                return _other_write(replaced.version)
            return EntryResult("replayed", replaced.version)
    return None


def _other_write(version: int) -> EntryResult:
    return EntryResult(
        "other_write", version, "this write id has stored something else here: a new write takes a new write id"
    )


def _kind_of(row: FileRow) -> RecordKind:
    if is_tombstone(row):
        return "tombstone"
    return "manifest" if row.flags & FileFlag.multipart else "file"


def _content(kind: RecordKind, digest: bytes) -> bytes:
    """8 bytes that tell a write from others under its write id; the digest tells the size as well."""
    return kind[:1].encode() + digest[:7]


def _forgotten(entry: CommitEntry, row: FileRow) -> bool:
    """Whether this write may have been applied, replaced, and pushed out of a full list."""
    if not entry.first_sent_ms or row.recent is None or len(row.recent) < RECENT_MAX:
        return False
    return entry.first_sent_ms - FORGOTTEN_SLACK_MS <= row.recent[0].replaced_ms


def remembered(row: FileRow | None, now_ms: int) -> list[Replaced] | None:
    """What a row that replaces `row` remembers."""
    if row is None:
        return None
    replaced = [*(row.recent or ()), Replaced(row.write_id, row.version, now_ms, _content(_kind_of(row), row.digest))]
    return [each for each in replaced if each.replaced_ms > now_ms - MEMORY_MS][-RECENT_MAX:] or None


def new_row(entry: CommitEntry, replaces: FileRow | None, now_ms: int) -> FileRow:
    """The row that a file, manifest or tombstone record puts."""
    flags = 0
    segments = None
    if entry.kind == "tombstone":
        flags = FileFlag.tombstone
    elif entry.kind == "manifest":
        flags = FileFlag.multipart
        if len(entry.segments) > SEGMENTS_INLINE_MAX:
            flags |= FileFlag.in_manifest
        else:
            segments = entry.segments
    return FileRow(
        FORMAT,
        int(flags),
        entry.version,
        entry.size,
        entry.digest,
        entry.write_id,
        entry.segment,
        entry.header_bytes,
        segments,
        remembered(replaces, now_ms),
    )


def new_part(entry: CommitEntry) -> PartRow:
    """The row that a part record puts."""
    return PartRow(FORMAT, entry.version, entry.size, entry.digest, entry.write_id, entry.segment)


def malformed(entry: CommitEntry, extent: int, old_length: int, new_length: int) -> EntryResult | None:
    """Why an entry cannot describe a record of this group, or None."""
    place = entry.segment
    wrong = ""
    if (
        place.extent != extent
        or not old_length <= place.offset <= new_length
        or place.offset + place.length > new_length
    ):
        wrong = "its bytes do not lie in this group"
    elif entry.kind in ("file", "part") and entry.size != place.length:
        wrong = "its size is not the length of its segment"
    elif entry.kind == "tombstone" and entry.size:
        wrong = "a tombstone has no bytes"
    elif entry.kind in ("part", "manifest") and len(entry.upload) != 16:
        wrong = "an upload id has 16 bytes"
    elif entry.kind == "manifest" and (
        len(entry.segments) != len(entry.part_versions) or entry.size != sum(part.length for part in entry.segments)
    ):
        wrong = "the manifest's parts do not add up to the file"
    return EntryResult("invalid", 0, wrong) if wrong else None
