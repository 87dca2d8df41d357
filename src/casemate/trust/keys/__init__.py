"""Private keys that sign: PEM files, and tokens through PKCS#11. Used where a person signs, on the command line's side.

No daemon loads this, no key and no PIN goes to one. ``private`` is pure (bytes in); ``apply`` reaches tokens, and is
the one module here with effects. The libraries are loaded with the first key.
"""
