"""casemated's work: desired and observed state, journal, operations, reconcile, recovery.

No HTTP here (that is api's), no effect on the host but through hostd's client.
"""
