"""Version order, exactly as each ecosystem's own tool has it. Pure; standard library only.

One module for each family; :mod:`casemate.trust.version.order` picks one by the scheme's name. Every comparison takes
time in proportion to the length of its arguments, whatever they hold: numbers are compared as digits, never through
``int`` (which is quadratic, and refuses more than 4,300 digits), and no parser calls itself.
"""
