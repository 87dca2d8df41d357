"""The trust policy: which signers, how old a scan may be, and what a finding leads to. Pure.

The longest repository prefix wins, and what no prefix covers is refused. The answer is a grade: admit, refuse, or admit
at a stronger isolation level and in a tighter segment; with the rule's name and each step that led to it.
"""
