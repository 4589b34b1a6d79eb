"""The family and the environment that stand for all others where nobody named one.

Place in the flow: beside everything; plain text, which costs no import, so that settings, helps and
examples can quote it.
"""

FAMILY = "cartpole"
ENVIRONMENT = "CartPole-v1"
EXAMPLE_TASK = '{"force": 7, "sign": -1}'
"""A task of `FAMILY`, as one types it."""
