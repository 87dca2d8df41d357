"""Rules, walls and conditions. Pure; no I/O."""
