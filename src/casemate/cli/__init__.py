"""The command line: a thin client of the API.

It may import nothing heavy at its start: an import-time budget (1.5 times ``python3 -c pass``) is tested, and so is
the list of modules that may be loaded (docs/decisions/0050). What costs (``json``, ``re``, ``ssl``, ``termios``,
``tarfile``, ``rich``, the error classes with ``typing``) is imported in the function that needs it. Nothing here holds
state, privilege or a decision: what a container may do is the daemons' to say.
"""
