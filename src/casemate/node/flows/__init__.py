"""Who talks to whom: the kernel's word on connections, joined with names and rules, kept in a ring, shown.

A child process (:mod:`casemate.node.flows.child`) reads and parses, since packets are hostile input and records come
by the ten thousand; casemated itself answers questions and tells the child who is who.
"""
