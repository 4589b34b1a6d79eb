"""Stage 5: training loops."""
