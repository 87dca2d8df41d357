"""One suite of cases, the same at every isolation level; ``make conformance`` prints the table."""
