"""What a machine begins as: a clone of the template that all share, of its project's own, or a cold boot. Pure.

Clones of one template map the same pages, so one can tell by time what another has touched or left alone
(CVE-2015-2877). A project's own template keeps that within the project; a cold boot shares no page with any machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.spec.settings import SettingInvalid
from casemate.spec.workload import TEMPLATES, Template, furthest

Kind = Template
_KINDS = TEMPLATES
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
#: Whose an engine's containers are that name no project.
ENGINES = "+engines"


@dataclass(frozen=True, slots=True)
class Origin:
    """*project*: whose template it is, where *kind* says that each has its own; else empty."""

    kind: Kind = "shared"
    project: str = ""

    def text(self) -> str:
        """As a bundle's annotation says it, and :func:`asked` reads it."""
        return f"project:{self.project}" if self.kind == "project" else self.kind


def policy(text: str) -> Kind:
    """The setting ``microvm.template``; :class:`SettingInvalid`: what separates tenants has no silent default."""
    for kind in _KINDS:
        if text == kind:
            return kind
    raise SettingInvalid(f"microvm.template: {text[:40]!r}; allowed are {', '.join(_KINDS)}")


def of(kind: Kind, project: str) -> Origin:
    """The origin of a machine of *project*."""
    return Origin(kind, project if kind == "project" else "")


def asked(text: str, least: Kind) -> Origin:
    """What a bundle's annotation *text* asks for, but never less apart than *least*. :class:`BundleUnsupported`."""
    kind, _, project = text.partition(":")
    if not text:
        return of(least, ENGINES)
    if kind not in _KINDS or (kind == "project") != bool(project) or (project and not _PROJECT.match(project)):
        raise BundleUnsupported(f"org.casemate.template={text[:80]!r}; allowed are shared, project:NAME and none")
    return of(furthest(least, next(one for one in _KINDS if one == kind)), project or ENGINES)
