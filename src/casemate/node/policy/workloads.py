"""The workloads that policy knows: by the pod's id, by name and by address."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from casemate.node.policy.endpoints import Workload
from casemate.policy.addresses import Address


class Workloads(Mapping[str, Workload]):
    """By pod id, as any mapping; a name or an address leads to the workload that had it last."""

    def __init__(self) -> None:
        self._of_pod: dict[str, Workload] = {}
        #: The pod's id by the workload's name.
        self.names: dict[str, str] = {}
        self._addresses: dict[Address, str] = {}

    def __getitem__(self, pod: str) -> Workload:
        return self._of_pod[pod]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of_pod)

    def __len__(self) -> int:
        return len(self._of_pod)

    def named(self, name: str) -> Workload | None:
        return self._of_pod.get(self.names.get(name, ""))

    def at(self, address: Address) -> Workload | None:
        """Whose *address* is, whether its pod has ever run or not."""
        return self._of_pod.get(self._addresses.get(address, ""))

    def note(self, workload: Workload) -> None:
        """The workload as it is now, in place of what its pod was before."""
        old = self._of_pod.get(workload.pod)
        if old is not None:
            self._part(old)
        self._of_pod[workload.pod] = workload
        self.names[workload.name] = workload.pod
        self._addresses.update(dict.fromkeys(workload.endpoint.addresses, workload.pod))

    def forget(self, pod: str) -> Workload | None:
        """What *pod* was, which is known no longer."""
        workload = self._of_pod.pop(pod, None)
        if workload is not None:
            self._part(workload)
        return workload

    def _part(self, workload: Workload) -> None:
        """From its name and addresses; who has them by now keeps them."""
        if self.names.get(workload.name) == workload.pod:
            del self.names[workload.name]
        for address in workload.endpoint.addresses:
            if self._addresses.get(address) == workload.pod:
                del self._addresses[address]
