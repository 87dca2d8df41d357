"""Trees as tar streams: packing what is on this side, and unpacking what a container holds without trusting it."""
