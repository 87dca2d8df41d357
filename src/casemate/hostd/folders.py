"""Where hostd keeps what: paths from ids, and nothing else. Pure but for the type.

::

    <host_state>/pods/<pod>/pod.json            the pod's record
    <host_state>/pods/<pod>/<container>/        container.json, log, log.1, upper, work
    <host_state>/layers, volumes, trash         see casemate.storage
    <host_run>/netns/<pod>                      the network namespace, pinned
    <host_run>/ns/<pod>/user, ipc, uts          the others
    <host_run>/c/<container>/                   bundle, root file system, binds, conmon's sockets; 0710 root:pod
    <host_run>/c/<container>/e/<exec>/          one exec
    <host_run>/exits/<container>                exit code, written by conmon
    <host_run>/layers/<hex>                     mounted layers
    <host_run>/runtime/                         the OCI runtime's own state
    <host_run>/relay.sock                       where the relay of kept connections is found again
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from casemate.spec.workload import PodSpec


@dataclass(frozen=True, slots=True)
class Folders:
    """All paths of hostd; ids are checked by who calls (the protocol's types do)."""

    state: Path
    run: Path

    @property
    def pods(self) -> Path:
        return self.state / "pods"

    @property
    def exits(self) -> Path:
        return self.run / "exits"

    @property
    def containers(self) -> Path:
        return self.run / "c"

    @property
    def netns(self) -> Path:
        return self.run / "netns"

    @property
    def namespaces(self) -> Path:
        return self.run / "ns"

    @property
    def runtime(self) -> Path:
        return self.run / "runtime"

    @property
    def socket(self) -> Path:
        return self.run / "hostd.sock"

    @property
    def relay_socket(self) -> Path:
        return self.run / "relay.sock"

    @property
    def relay_record(self) -> Path:
        return self.run / "relay.port"

    def pod(self, pod: str) -> Path:
        return self.pods / pod

    def pod_record(self, pod: str) -> Path:
        return self.pods / pod / "pod.json"

    def container_state(self, pod: str, container: str) -> Path:
        return self.pods / pod / container

    def container_record(self, pod: str, container: str) -> Path:
        return self.pods / pod / container / "container.json"

    def log(self, pod: str, container: str) -> Path:
        return self.pods / pod / container / "log"

    def bundle(self, container: str) -> Path:
        return self.run / "c" / container

    def rootfs(self, container: str) -> Path:
        return self.run / "c" / container / "rootfs"

    def exec(self, container: str, exec_id: str) -> Path:
        return self.run / "c" / container / "e" / exec_id

    def exit_file(self, container: str) -> Path:
        return self.run / "exits" / container

    def pins(self, spec: PodSpec) -> dict[str, Path]:
        """The namespaces that *spec* has of its own (by OCI type), and where they are pinned.

        A micro-VM's are its own kernel's: none is the host's.
        """
        if spec.level == "microvm":
            return {}
        found = {"user": self.namespaces / spec.id / "user", "uts": self.namespaces / spec.id / "uts"}
        if not spec.host_ipc:
            found["ipc"] = self.namespaces / spec.id / "ipc"
        if spec.network.mode != "host":
            found["network"] = self.netns / spec.id
        return found
