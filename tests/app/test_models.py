"""Tab 0: which models there are, what one is, whose it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ssm_metarl.app.handlers.models import OWN_RUN, WITHOUT, Models, facts, log_rows
from ssm_metarl.app.server import Server
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.checkpoint import load_pretrained, shipped_models
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.tasks.pendulum import PENDULUM


def test_a_shipped_model_is_ready_for_a_new_visitor(server: Server, visitor: Visitor) -> None:
    assert visitor.model == "cartpole"
    opened = server.models.of(visitor)
    assert server.models.modes(visitor) == [WITHOUT, "standard", "hybrid"]
    said = dict(facts(opened))
    assert said["parameters"] == f"{load_pretrained('cartpole').num_parameters():,}"
    assert said["meta-trained for"] == "2,917,218 environment steps"
    assert server.models.card(visitor).startswith("# cartpole")
    assert len(log_rows(opened.training_log)) > 50


def test_a_new_visitor_begins_with_the_first_familys_first_model(
    server: Server,
) -> None:
    assert server.models.first == "cartpole"
    other = Models(server.kernels)
    other._opened["cartpole"] = replace(other._open("cartpole"), family=PENDULUM)
    assert other.first == "cartpole_hybrid_real_model"


def test_the_visitor_chooses_from_a_list(server: Server, visitor: Visitor) -> None:
    names = server.models.names(visitor)
    assert names == list(shipped_models()), "no run of their own yet"
    server.models.choose(visitor, names[1])
    assert server.models.of(visitor).name == names[1]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../models/cartpole", "cartpole.safetensors", OWN_RUN, "", None, 3]
)
def test_no_path_and_nothing_else_is_a_model(
    server: Server, visitor: Visitor, name: object
) -> None:
    with pytest.raises(ValueError, match="model: expected one of cartpole"):
        server.models.choose(visitor, name)
    assert visitor.model == "cartpole"


def test_two_visitors_share_what_is_read_only(server: Server, visitor: Visitor) -> None:
    other = server.visitors.arrive("")
    assert server.models.of(visitor) is server.models.of(other)
    server.models.choose(other, "cartpole_hybrid_real_model")
    assert visitor.model == "cartpole"


def test_what_is_said_of_a_model_that_was_trained_in_context(
    server: Server, visitor: Visitor
) -> None:
    opened = server.models.of(visitor)
    checkpoint = replace(opened.checkpoint, training={"mode": "in_context", "family": "cartpole"})
    trained = MetaTrained.from_training(checkpoint.training)
    server.models._opened[visitor.model] = replace(opened, checkpoint=checkpoint, trained=trained)
    said = dict(facts(server.models.of(visitor)))
    assert "a step descends" not in said and said["ways to adapt"] == "none"
