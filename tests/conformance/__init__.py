"""One suite of cases, the same at every isolation level (the lead of the team writes this one)."""
