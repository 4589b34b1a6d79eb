"""Between the stages: what a gradient descends, as pure functions."""
