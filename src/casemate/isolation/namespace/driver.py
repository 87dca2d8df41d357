"""The driver of the ``namespace`` level over crun or runc: pure."""

from __future__ import annotations

from casemate.isolation import oci
from casemate.isolation.bundle import BundleInput, BundlePlan
from casemate.isolation.level import Features, Runtime
from casemate.spec.workload import Level


class NamespaceLevel:
    """Containers as processes of the host's kernel, in a user namespace of their pod's own."""

    name: Level = "namespace"
    features = Features(processes="host", state_is_files=True)

    def __init__(self, runtime: Runtime, why: str) -> None:
        self.runtime = runtime
        self.summary = f"{runtime.name} {runtime.version}: {why}".strip()

    def bundle(self, given: BundleInput) -> BundlePlan:
        return oci.configuration(given)
