"""The isolation levels: each a driver behind one Protocol that turns a pod and its containers into an OCI bundle.

No network set-up, no image parsing, no state of the daemon.
"""
