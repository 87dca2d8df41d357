"""Connections that outlive a restart: the relay of kept ports, a child of casemated without privilege, and its keeper.

Must not be here: anything that reads what goes through the relay, or that decides who may talk to whom.
"""
