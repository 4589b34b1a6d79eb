"""Stage 8: proposals, training, a gate on fresh tasks, and a ledger."""
