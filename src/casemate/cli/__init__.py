"""The command line: a thin client of the API.

It may import nothing heavy: an import-time budget (1.5 times ``python3 -c pass``) is tested.
"""
