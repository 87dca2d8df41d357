"""Casemate: every container in its own armoured chamber.

Layers, from the top; a layer imports only layers below it, and siblings do not import each other
(``.importlinter`` holds it)::

    cli | sdk          thin clients of the API
    api                routes, server
    node               casemated: reconcile, journal, operations, recovery
    image | trust | policy
    hostd              casemate-hostd: the typed operations, and nothing else
    isolation | network | storage
    host               every effect on the system
    spec               frozen values, ids, units, errors; standard library only
"""

__version__ = "0.1.0"
