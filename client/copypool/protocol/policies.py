"""What operators say about pools, volumes, namespaces' policies and maintenance. Structs only.

In an update a field that is None stays as it is. Sizes are bytes, `_s` seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from copypool.protocol.api import AccessMode, AckRule, NamespaceInfo, OnCopyFailure, PoolInfo, PoolType, VolumeInfo

Spread = Literal["host", "zone"]

COPY_POOLS_MAX = 8  #: of a class
TEXT_MAX = 500  #: characters of a description or a location text
BUDGET_MIN_BYTES_S = 64 * 1024
WINDOW_MAX_S = 7 * 24 * 3600
MAINTENANCE_MAX_S = 7 * 24 * 3600


class PoolSpec(msgspec.Struct, omit_defaults=True):
    """POST /rpc/pool_create, role operator. Answer: PoolDetails. The same pool again is recognised."""

    name: str
    type: PoolType
    copy_pools: list[str] = []  #: primary pools: of namespaces that name none themselves
    spread: Spread = "host"
    window: str = ""
    window_s: int = 0
    budget_bytes_s: int = 0
    description: str = ""


class PoolUpdate(msgspec.Struct, omit_defaults=True):
    """POST /rpc/pool_update, role operator. Answer: PoolDetails."""

    name: str
    copy_pools: list[str] | None = None
    spread: Spread | None = None
    window: str | None = None  #: "": always open
    window_s: int | None = None
    budget_bytes_s: int | None = None
    description: str | None = None


class PoolName(msgspec.Struct):
    """POST /rpc/pool_show, role operator. Answer: PoolDetails."""

    name: str


class PoolDetails(msgspec.Struct):
    """One pool: what it holds, and what was set."""

    info: PoolInfo
    copy_pools: list[str]
    spread: Spread
    window: str
    window_s: int
    window_open: bool
    window_changes_unix_s: float | None  #: when it opens or closes next; None: never
    budget_bytes_s: int
    description: str
    namespaces: list[str]  #: whose new extents belong to this pool
    volumes: list[str]


class VolumeSpec(msgspec.Struct, omit_defaults=True):
    """POST /rpc/volume_define, role operator: announce a volume before any node mounts it. Answer: VolumeDetails."""

    name: str
    pool: str
    node: str = ""  #: only this node may mount it first; "": any
    access: AccessMode = "readwrite"
    location_text: str = ""
    limit_bytes: int = 0


class VolumeUpdate(msgspec.Struct, omit_defaults=True):
    """POST /rpc/volume_update, role operator. Answer: VolumeDetails.

    A change of access that forbids writing has sealed the volume's open extents when it answers.
    """

    name: str
    access: AccessMode | None = None
    location_text: str | None = None
    limit_bytes: int | None = None


class VolumeName(msgspec.Struct):
    """POST /rpc/volume_show, role operator. Answer: VolumeDetails."""

    name: str


class VolumeDetails(msgspec.Struct):
    """One volume: what it holds, how good that is, and what was set."""

    info: VolumeInfo
    location_text: str
    limit_bytes: int
    access_reason: str  #: why a program set the access mode; "": a person did
    access_since_unix_s: float | None
    mounted: bool  #: some node has mounted it at some time
    locations: dict[str, int]  #: state -> locations of extents
    unverified: int  #: good locations that were never read back
    verified_oldest_unix_s: float | None  #: of the good locations that were; offsite too
    only_here: int  #: sealed extents whose only good, counted, full location is here


class NamespaceName(msgspec.Struct):
    """POST /rpc/namespace_show, role reader. Answer: NamespaceDetails."""

    name: str


class NamespaceUpdate(msgspec.Struct, omit_defaults=True):
    """POST /rpc/namespace_update, role admin. Answer: NamespaceDetails. Policy is that of new extents."""

    name: str
    primary_pool: str | None = None
    copy_pools: list[str] | None = None
    ack: AckRule | None = None
    on_copy_failure: OnCopyFailure | None = None
    quota_bytes: int | None = None


class NamespaceDetails(msgspec.Struct):
    """One namespace: its policy, what it holds, and what older policies have left."""

    info: NamespaceInfo
    files: int
    bytes: int
    as_of_unix_s: float  #: of `files` and `bytes`
    rewriting: bool  #: older extents are being given the present policy
    older_extents: int  #: extents of its older classes, which may hold records of it
    older_bytes: int
    shared_with: list[str]  #: namespaces with another policy whose records may be in those extents
    rewritable: bool  #: `namespace rewrite` can do all of them
    obstacle: str  #: why not; "" when it can
    lacking_extents: int = 0  #: sealed extents of its present class that are not yet where that wants them
    lacking_bytes: int = 0  #: payload of this namespace in those


class MaintenanceRequest(msgspec.Struct):
    """POST /rpc/maintenance, role operator: this node will be away; `for_s` 0 ends it. Answer: MaintenanceReply."""

    node: str
    for_s: int


class MaintenanceReply(msgspec.Struct):
    node: str
    until_unix_s: float | None  #: None: no maintenance


class BrakeReply(msgspec.Struct):
    """Answer of /rpc/brake_release (`Empty`), role admin: what is away now is rebuilt after its grace time."""

    brake: str  #: what held it up until now
