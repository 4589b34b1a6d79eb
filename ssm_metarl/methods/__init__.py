"""Stage 7: one file for each way to adapt, and all that others need to know of it."""
