"""Every effect on the system: programs, mounts, cgroups, netlink, sockets, safe paths.

Nothing here may know what a container or an image is, and nothing here decides: callers plan, this applies.
"""
