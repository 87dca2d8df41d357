"""Being connected to a process: the loop that moves bytes, the terminal, signals, the keys that detach."""
