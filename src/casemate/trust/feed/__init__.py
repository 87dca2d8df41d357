"""Feeds of known vulnerabilities: parsers of their forms, one SQLite file that holds them, and the match with packages.

Pure (bytes and values in, values out) but for :mod:`casemate.trust.feed.apply`, which alone opens files. A feed that is
empty, stale, cut off or half imported is an error; it never makes an image look clean.
"""
