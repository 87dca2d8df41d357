"""Host-side links, addresses, NAT and published ports of pods.

No policy is decided here, and nothing that a packet carries is parsed.
"""
