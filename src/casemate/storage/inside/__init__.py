"""The work of the confined child, one module a task. Standard library only; imported before the tree is entered.

Runs in :mod:`casemate.storage.confined_child` alone, never in a daemon.
"""
