"""The driver of the ``namespace`` level over crun or runc: pure, but for a compiler that only computes."""

from __future__ import annotations

from casemate.isolation import oci
from casemate.isolation.bundle import BundleInput, BundlePlan
from casemate.isolation.level import Features, Inside, Runtime
from casemate.isolation.seccomp_compile import ANNOTATION, Compiler
from casemate.spec.workload import Level


class NamespaceLevel:
    """Containers as processes of the host's kernel, in a user namespace of their pod's own.

    *compiler*: for a runtime that takes seccomp's program ready-made (crun); None leaves it to the runtime.
    """

    name: Level = "namespace"
    features = Features(processes="host", state_is_files=True)
    inside: Inside | None = None

    def __init__(self, runtime: Runtime, why: str, compiler: Compiler | None = None) -> None:
        self.runtime = runtime
        self.summary = f"{runtime.name} {runtime.version}: {why}".strip()
        self._compiler = compiler

    def bundle(self, given: BundleInput) -> BundlePlan:
        plan = oci.configuration(given)
        profile = plan.config["linux"].get("seccomp")
        if self._compiler is not None and profile is not None:
            # The profile stands beside it no longer: two would be one too many, and 20 KB to parse for nothing.
            del plan.config["linux"]["seccomp"]
            plan.config["annotations"] = {ANNOTATION: self._compiler.annotation(profile)}
        return plan
