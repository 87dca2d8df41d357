"""Freshness: TUF metadata of our own say which digest a tag has today. Pure; ``tuf`` is loaded when it is needed.

A target's path is ``repository:tag``, its SHA-256 the manifest's digest. Root and targets keys sign seldom and offline,
teams sign what is delegated to them, the timestamp's short life shows that nobody holds back something newer.
"""
