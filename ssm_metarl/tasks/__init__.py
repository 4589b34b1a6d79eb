"""Stage 1: what varies between tasks."""
