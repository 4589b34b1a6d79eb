"""Stage 2: worlds to act in, and rollouts of what happened there."""
