"""What was found, for other programs: bills of materials (CycloneDX 1.6, SPDX 2.3) and SARIF 2.1.0. Pure.

The same contents give the same bytes: no clock, no random number; the time is an argument.
"""
