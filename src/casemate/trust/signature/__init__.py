"""Who vouches for an image: signatures and attestations over its digest. Pure: bytes in, verified values out.

The plan, which :mod:`casemate.trust.signature.verify` follows number by number:

1. The digest is what the caller resolved once; nothing here resolves anything.
2. Documents are counted and measured before any is parsed.
3. Each document is parsed into a claim: what is signed, the signature, and what came with it.
4. The claim's own form is checked (type, media type, critical headers; what is not known is refused).
5. The signature is checked with a key that the *policy* names, never with one that came with the document.
6. The signed content is parsed only now, and must name the digest of 1; a repository name in it must match as well.
7. A log entry that came along must be of the same content, key and signature.
8. Times: certificates and expiries against the clock that the caller gives.
9. Signers that are verified are counted once each; the threshold decides.

``cryptography`` is imported when the first key is loaded. Nothing here touches a network or a file.
"""
