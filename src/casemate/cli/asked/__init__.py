"""From what was typed to what the API takes: sizes, times, mounts, ports, environment, the request itself.

Pure, but for reading the files that a flag names. Each refusal names the flag, the value seen and the form wanted.
"""
