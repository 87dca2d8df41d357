"""The ``namespace`` level: a shared kernel, with user namespaces, seccomp and no spare privilege."""
