"""What hostd opens for those who watch and for the pods' resolver; both then work without privilege."""

from __future__ import annotations

from casemate.hostd.protocol_base import Operation


class FlowsWatch(Operation, frozen=True, tag="flows.watch"):
    """Opens what the kernel tells of pods' connections. Answers Done and three descriptors.

    They are sockets: conntrack's events (those with an end among the pods; a locked filter keeps the host's own away),
    the packet log of the firewall's verdicts, and that of the first packets that begin a TLS handshake. Nothing can be
    asked of the kernel through them. Until they are closed nobody else gets them: ``hostd.watched``.
    """


class ResolverListen(Operation, frozen=True, tag="resolver.listen"):
    """Leads port 53 of the pods' gateway to two sockets. Answers Done and both: UDP, and TCP that listens.

    They are given away: hostd has no socket on any network. Asked again it makes others, and leads to those.
    """


VisibilityOperation = FlowsWatch | ResolverListen
