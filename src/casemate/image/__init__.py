"""Images: references, transfer, conversion of layers to squashfs, and the store.

Runs without privilege; the only way from here to the kernel is through hostd's client.
"""
