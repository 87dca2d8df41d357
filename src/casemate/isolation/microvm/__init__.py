"""The level ``microvm``: a kernel of its own for each pod, started by cloning a booted template.

Nothing here parses an image. What the guest says is hostile: it is read in :mod:`frames` alone, with bounds.
"""
