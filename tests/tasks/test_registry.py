"""Names and environment ids lead to families, or to one clear line."""

from __future__ import annotations

import re

import pytest

from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.registry import FAMILIES, family_of_env


def test_names_and_ids():
    assert family_of_env("CartPole-v1") is CARTPOLE
    assert family_of_env("cartpole") is CARTPOLE


def test_an_unknown_environment_id_says_how_to_declare_a_family():
    with pytest.raises(ValueError, match=re.escape("cartpole (CartPole-v1)")) as error:
        family_of_env("Acrobot-v1")
    message = str(error.value)
    assert "received 'Acrobot-v1'" in message
    assert "\n" not in message
    declaration = (
        'TaskFamily.from_gymnasium("Pendulum-v1", parameters={"g": Uniform(5, 15, unit="m/s²")})'
    )
    assert declaration in message


def test_a_family_can_be_a_key():
    """What was worked out about one is kept for the next time (`adaptation.plant_prior`)."""
    found = {family: family.name for family in FAMILIES.values()}
    assert {found[family] for family in FAMILIES.values()} == set(FAMILIES)
