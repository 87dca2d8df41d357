"""The values of the REST API: what a request may hold and what an answer holds.

docs/reference/openapi.json is generated from these and from the table of routes; a test fails when it is stale.
Unknown fields in a request are refused. Times are RFC 3339 text in UTC; sizes bytes; durations seconds.

Attach and exec are WebSockets (the same over the unix socket and over TLS). A binary message begins with one byte:
0 standard input, 1 standard output, 2 standard error, 3 control (the rest is JSON: :class:`Control`). An empty
standard-input message ends the input. The server's last message is a control with ``exit_code``.

Logs are a chunked body of frames: one byte stream (1 or 2), three zero bytes, four bytes length (big endian), text.
Server-sent events carry ``id``, ``event`` and one JSON ``data`` line.
"""

from __future__ import annotations

from casemate.spec.api.containers import (
    Admission,
    Change,
    ChangesAnswer,
    ContainerCreated,
    ContainerDetail,
    ContainerList,
    ContainerRequest,
    ContainerSummary,
    Control,
    ExecCreated,
    ExecDetail,
    ExecRequest,
    KillRequest,
    PathStat,
    RenameRequest,
    StatsAnswer,
    StatsRow,
    Status,
    StopRequest,
    TopAnswer,
    UpdateAnswer,
    UpdateRequest,
    WaitAnswer,
)
from casemate.spec.api.fields import (
    Labels,
    NetworkRequest,
    PortRequest,
    PullPolicy,
    Reference,
    RestartPolicy,
    Seconds,
    UserText,
)
from casemate.spec.api.images import (
    BuildDebianRequest,
    HistoryAnswer,
    HistoryRow,
    ImageDetail,
    ImageList,
    ImageSummary,
    PullRequest,
    PushRequest,
    RegistryAuth,
    Removed,
    TagRequest,
)
from casemate.spec.api.node import (
    AuditList,
    AuditRow,
    DiskAnswer,
    DiskRow,
    DoctorAnswer,
    EventRow,
    FindingRow,
    InfoAnswer,
    Operation,
    Progress,
    PruneRequest,
    VersionAnswer,
)
from casemate.spec.api.pods import PodDetail, PodList, PodRequest, PodSummary
from casemate.spec.api.volumes import VolumeList, VolumeRequest, VolumeSummary

__all__ = (
    "Admission",
    "AuditList",
    "AuditRow",
    "BuildDebianRequest",
    "Change",
    "ChangesAnswer",
    "ContainerCreated",
    "ContainerDetail",
    "ContainerList",
    "ContainerRequest",
    "ContainerSummary",
    "Control",
    "DiskAnswer",
    "DiskRow",
    "DoctorAnswer",
    "EventRow",
    "ExecCreated",
    "ExecDetail",
    "ExecRequest",
    "FindingRow",
    "HistoryAnswer",
    "HistoryRow",
    "ImageDetail",
    "ImageList",
    "ImageSummary",
    "InfoAnswer",
    "KillRequest",
    "Labels",
    "NetworkRequest",
    "Operation",
    "PathStat",
    "PodDetail",
    "PodList",
    "PodRequest",
    "PodSummary",
    "PortRequest",
    "Progress",
    "PruneRequest",
    "PullPolicy",
    "PullRequest",
    "PushRequest",
    "Reference",
    "RegistryAuth",
    "Removed",
    "RenameRequest",
    "RestartPolicy",
    "Seconds",
    "StatsAnswer",
    "StatsRow",
    "Status",
    "StopRequest",
    "TagRequest",
    "TopAnswer",
    "UpdateAnswer",
    "UpdateRequest",
    "UserText",
    "VersionAnswer",
    "VolumeList",
    "VolumeRequest",
    "VolumeSummary",
    "WaitAnswer",
)
