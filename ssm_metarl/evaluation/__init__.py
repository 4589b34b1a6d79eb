"""Stage 7: held-out tasks, one scoring loop, statistics, reports."""
