"""Stage 4: from meta-parameters and data to task parameters."""
