"""What is in a layer: packages, distribution, setuid files, secrets left behind. Pure parsers; no I/O.

A layer's tar stream is read once, by the image layer's rewriter; a scanner
(:class:`~casemate.trust.packages.scanner.LayerScanner`) is told of each entry and asks for the contents of a few.
Parsers take a path and its content and give packages, or raise ``PackageListInvalid``; what cannot be read is kept as
such with its reason, because a list that is not whole must never pass for a clean one.
"""
