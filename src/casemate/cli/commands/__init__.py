"""The commands, a module for each group: a :class:`~casemate.cli.flags.Command` and the function that does it."""
