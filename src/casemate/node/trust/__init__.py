"""Trust wired into casemated: scans, feeds, admission, what runs already. Heavy work is done in a limited child.

``worker`` is that child; ``jobs`` is what it is asked and answers; the other modules run on casemated's loop.
"""
