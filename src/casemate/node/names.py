"""Names for containers and pods whose owner gave none: ``adjective_noun``. Pure; the caller brings the randomness."""

from __future__ import annotations

_ADJECTIVE_WORDS = """
able agile amber ample azure bold brave brisk calm candid clear clever cosy crisp daring deft eager early fair
fond fresh frosty gentle glad golden grand green happy hardy honest humble jolly keen kind level light lively
loyal lucid lucky merry mild neat nimble noble patient placid plain polite proud quick quiet rapid ready royal
sage sharp silent silver sleek smart snug solid spry steady stoic sturdy subtle sunny swift tidy tranquil true
upbeat valiant vivid warm wise witty young zesty
"""
_NOUN_WORDS = """
alcove anchor anvil arch armour barrel basin bastion beacon bell bolt bridge buckler cabin canopy castle cave
chamber chest citadel cloister compass cove crate cupola dock dome door drawbridge fort gallery garden gate
girder granary grotto harbour haven helmet hull keel keep ladder lantern latch lighthouse lock loft mast mill
moat nave niche oriel pavilion pillar porch quay rampart ridge sail sentry shelter shield silo spire stable
tower trunk turret vane vault wall well wharf window
"""
_ADJECTIVES = _ADJECTIVE_WORDS.split()
_NOUNS = _NOUN_WORDS.split()


def random_name(number: int) -> str:
    """The name that *number* (at least 32 random bits) picks; the part above the words' count makes a suffix.

    The first try is two words; callers that find it taken add digits by :func:`another_name`.
    """
    number, adjective = divmod(number, len(_ADJECTIVES))
    return f"{_ADJECTIVES[adjective]}_{_NOUNS[number % len(_NOUNS)]}"


def another_name(number: int) -> str:
    """As :func:`random_name`, with four digits more: for a host on which the two words are often taken."""
    return f"{random_name(number)}{(number >> 24) % 10_000:04d}"
