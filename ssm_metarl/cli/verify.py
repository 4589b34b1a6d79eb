"""``ssm-metarl verify``: ten seeded episodes of a model, compared with its card.

Place in the flow: a command; the work is `evaluation.meta_evaluator.verify`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssm_metarl.cli.console import announce_compilation, print_json

EXIT_DIFFERENT = 1
VERDICTS = {
    True: "equal to the model's card",
    False: "NOT equal to the model's card",
    None: "the model's card has no figures for this seed",
}


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Run ten seeded episodes of a model and compare them with its card."""

    model: str
    """A shipped name, a run's folder, a checkpoint or a .pth file."""
    family: str | None = None
    """Task family: a name, or my_plant.py:FAMILY; None for the one it was trained on."""
    seed: int | None = None
    """Seed of the episodes; None for the card's, the only one that can be compared."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Verify; exit code 1 where the figures differ from the card's."""
        from ssm_metarl.evaluation.meta_evaluator import agrees, verify
        from ssm_metarl.evaluation.opened_model import open_model, readable

        announce_compilation()
        opened = open_model(self.model, self.family)
        with readable(self.model):
            card = opened.checkpoint.card.get("verification")
            recorded = card["seed"] if card is not None else None
        seed = self.seed if self.seed is not None else recorded or 0
        measured = verify(opened.policy, opened.family, opened.trained, seed=seed)
        matches = agrees(measured, card) if card is not None and recorded == seed else None
        if self.json:
            print_json({"model": self.model, **measured, "matches_card": matches})
        else:
            print(
                f"{self.model}: ten episodes (seed {seed}), each on its own task, adapted from "
                f"{measured['support_steps']} steps: mean {measured['mean']:.1f} ± "
                f"{measured['std']:.1f}, minimum {measured['min']:g}, maximum "
                f"{measured['max']:g}, steps {measured['steps']}; without adapting "
                f"{measured['frozen_mean']:.1f}"
            )
            print(VERDICTS[matches])
        return EXIT_DIFFERENT if matches is False else 0
