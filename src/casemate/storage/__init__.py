"""Layers, writable roots and volumes as mounts.

Nothing here parses what is inside a layer or a volume.
"""
