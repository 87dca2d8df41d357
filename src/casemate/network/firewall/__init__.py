"""The identity firewall in the kernel: one nftables table, its maps, its packet queues.

What it is told it brings into force; no rule of a policy is known here.
"""
