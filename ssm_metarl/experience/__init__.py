"""Between the stages: experience replay."""
