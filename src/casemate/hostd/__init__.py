"""casemate-hostd: the typed operations of the privileged daemon, and nothing else.

It parses no image, no manifest, no HTTP and no policy text; it never imports image, trust, policy, node or api.
Layers above reach it only through :mod:`casemate.hostd.client` and :mod:`casemate.hostd.protocol`.
"""
