"""Admission: the step between "resolved to a digest" and "run". Pure; no I/O."""
