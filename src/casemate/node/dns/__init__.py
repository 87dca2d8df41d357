"""The pods' resolver: names of pods by project, everything else from the host's resolvers, and names in rules.

A child process (:mod:`casemate.node.dns.child`) parses what pods and strangers send; casemated tells it who is who, and
lays the answers that a rule names into the firewall before the pod gets them.
"""
