"""The level ``gvisor``: a kernel in user space (runsc) between a pod's code and the host's kernel."""
