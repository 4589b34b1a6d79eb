"""Stage 7: held-out tasks, baselines, statistics, reports."""
