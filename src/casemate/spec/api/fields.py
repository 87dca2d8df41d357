"""Values that several requests of the API hold."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from casemate.spec.workload import HostEntry, KeptPort, Port, Value

Reference = Annotated[str, Meta(min_length=1, max_length=512)]
Labels = Annotated[dict[str, Annotated[str, Meta(max_length=65_536)]], Meta(max_length=512)]
Seconds = Annotated[int, Meta(ge=0, le=86_400)]
#: A user as it is typed: ``name``, ``uid``, ``name:group``, ``uid:gid``.
UserText = Annotated[str, Meta(max_length=256)]
PullPolicy = Literal["missing", "always", "never"]


class PortRequest(Value, frozen=True):
    """A published port; *host_port* 0 lets Casemate choose a free one."""

    container_port: Port
    host_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    host_address: Annotated[str, Meta(max_length=15)] = "0.0.0.0"  # noqa: S104 - the default of Docker and Podman
    protocol: Literal["tcp", "udp"] = "tcp"


class RestartPolicy(Value, frozen=True):
    name: Literal["no", "on-failure", "always", "unless-stopped"] = "no"
    #: For on-failure: how often at most; 0 is without end.
    maximum: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class NetworkRequest(Value, frozen=True):
    mode: Literal["pod", "none", "host"] = "pod"
    ports: Annotated[tuple[PortRequest, ...], Meta(max_length=1024)] = ()
    #: Publish every port that the image exposes (``-P``).
    publish_all: bool = False
    #: TCP ports whose open connections outlive ``restart --hold connections`` (``--keep``).
    kept: Annotated[tuple[KeptPort, ...], Meta(max_length=16)] = ()
    dns: Annotated[tuple[str, ...], Meta(max_length=8)] = ()
    dns_search: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    dns_options: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    hosts: Annotated[tuple[HostEntry, ...], Meta(max_length=256)] = ()
