"""Frozen values, ids, units, errors and the table of settings: the words that every other layer speaks.

Pure and standard library only: nothing here may import ``os``, ``asyncio``, ``socket``, ``subprocess`` or
``time``, read a file, or know that a daemon exists.
"""
