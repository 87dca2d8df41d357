"""The Python client for programs.
"""
