"""Recursive self-improvement: propose, train, screen, confirm, commit, watch.

Place in the flow: stage 8, the loop one reads. `RecursiveSelfImprovementAgent.step` does what the
lineage's stage asks for and appends one event; `lineage` folds it in and says what comes next. So
the agent holds nothing that the ledger does not: killed at any instant, it goes on from the last
event, and every random number that it draws belongs to (seed, purpose, generation or task). All
computing is done by jobs (`candidates.Training`, `metrics.Measurement`) that an executor runs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ssm_metarl import seeding
from ssm_metarl.recursive_self_improvement.candidates import Trained, Training
from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.recursive_self_improvement.executor import Executor, InlineExecutor
from ssm_metarl.recursive_self_improvement.gate import PRIMARY, EProcess
from ssm_metarl.recursive_self_improvement.generation import Record, Role, Stage
from ssm_metarl.recursive_self_improvement.ledger import Ledger, LedgerDamaged
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.metrics import (
    CURVE_METRICS,
    Measured,
    Measurement,
    bounds_of,
    lost,
)
from ssm_metarl.recursive_self_improvement.proposals import changes_of, propose, require_optuna
from ssm_metarl.recursive_self_improvement.safety import evaluator_hash, require_room
from ssm_metarl.recursive_self_improvement.store import WeightStore
from ssm_metarl.recursive_self_improvement.worker import Outcome

if TYPE_CHECKING:
    from ssm_metarl.checkpoint import Checkpoint
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.core.ssm import StateSpaceModel
    from ssm_metarl.env_runner.environment import Environment
    from ssm_metarl.tasks.task_family import TaskFamily

BASELINE_TASKS = 64
WEIGHTS, WORK = "weights", "work"
Body = dict[str, Any]
Update = Callable[[Lineage, str, str], None]


class RecursiveSelfImprovementAgent:
    """A lineage of champions, and the process that improves it.

    Args:
        initial_model: Generation 0: a policy, a `StateSpaceModel`, a checkpoint, a shipped name or
            a path. One that comes with its training (a checkpoint, a run) is trained on as it was;
            others get the default recipe. None continues the lineage in ``folder``.
        env: The task family: an `Environment` that belongs to one, its name, or a `TaskFamily`.
            None for the one that the model was trained on.
        config: Budgets, thresholds, tolerances. A lineage keeps those that it began with: to go on
            with it, what is at its default here stands for what it was.
        folder: Where the lineage lives; None for a folder that ends with the agent.
        executor: What runs trainings and measurements; None for this very process.
        on_update: Called with the lineage, the kind of event, and a detail: after every event, and
            for every training that ends.

    Raises:
        ValueError: The model does not fit the family; the folder holds another lineage; Optuna is
            not installed.
    """

    def __init__(
        self,
        initial_model: Policy | StateSpaceModel | Checkpoint | str | Path | None = None,
        env: Environment | TaskFamily | str | None = None,
        config: RSIConfig | None = None,
        *,
        folder: Path | None = None,
        executor: Executor | None = None,
        on_update: Update | None = None,
    ) -> None:
        require_optuna()
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="ssm-metarl-rsi-")
        self.folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.executor = executor or InlineExecutor()
        self._on_update = on_update or (lambda lineage, kind, detail: None)
        self._compiled = False
        self._min_free_mb = (config or RSIConfig()).min_free_mb
        self.ledger = Ledger(self.folder)
        try:
            self._open(initial_model, env, config)
        except BaseException:
            self.close()
            raise

    def _open(self, initial_model: Any, env: Any, config: RSIConfig | None) -> None:
        """Begin a lineage, or go on with the one that is there."""
        self.store = WeightStore(self.folder / WEIGHTS)
        self.lineage = Lineage(self.ledger.events())
        from ssm_metarl.recursive_self_improvement import generation_zero

        if self.lineage.stage == Stage.INIT:
            content, self.family, parameters = generation_zero.generation_zero(initial_model, env)
            self._begin(content, parameters, config or RSIConfig())
        else:
            self.family = generation_zero.family_of_lineage(
                self.lineage, self.folder, initial_model, env, config
            )

    def _begin(self, content: bytes, parameters: int, config: RSIConfig) -> None:
        bounds = bounds_of(self.family, config)
        if parameters > config.max_parameters:
            raise ValueError(
                f"model: expected at most {config.max_parameters:,} parameters (max_parameters), "
                f"received {parameters:,}"
            )
        body = {
            "config": asdict(config),
            "family": self.family.name,
            "bounds": list(bounds),
            "champion": self.store.put(content),
            "parameters": parameters,
            "evaluator": evaluator_hash(),
        }
        self._append("init", body)

    @property
    def current_model(self) -> Policy:
        """The champion."""
        from ssm_metarl.checkpoint import unpack

        return unpack(self.store.get(self.lineage.champion), "champion").policy()

    @property
    def finished(self) -> str | None:
        """Why no generation can begin: None while one can."""
        lineage, config = self.lineage, self.lineage.config
        if lineage.stage == Stage.HALTED:
            return f"halted: {lineage.reason}; look into it, then: ssm-metarl rsi resume --ack"
        needed = (config.num_candidates + 2) * config.train_steps
        if lineage.stage == Stage.PROPOSE and lineage.budget_left < needed:
            return (
                f"the budget is used up: {lineage.env_steps:,} of {config.max_env_steps:,} "
                f"environment steps"
            )
        return None

    def improve(self) -> Record:
        """Run one generation, or finish the one that was interrupted; returns its record.

        Raises:
            ValueError: None can begin (see `finished`).
            Stopped: The executor was asked to stop; nothing is lost.
            OSError: The disk is full; the champion is what it was.
        """
        generations = len(self.lineage.records)
        while len(self.lineage.records) == generations:
            if reason := self.finished:
                raise ValueError(f"rsi: {reason}")
            self.step()
        return self.lineage.records[-1]

    def step(self) -> None:
        """Do what the stage asks for, and append its event; it raises as `improve` does."""
        if self.lineage.stage == Stage.HALTED:
            raise ValueError(f"rsi: {self.finished}")
        require_room(self.folder, self._min_free_mb)
        if (found := evaluator_hash()) != self.lineage.evaluator:
            return self._halt(found)
        body: Body = {}
        try:
            kind, body = self._work()
            if (found := evaluator_hash()) != self.lineage.evaluator:
                return self._halt(found)  # it may have changed before the numbers came
            self._write(kind, body)
        except LedgerDamaged:
            raise
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            kind, body = "failure", {"reason": reason, "used": _stretch(self.lineage.stage, body)}
            self._write(kind, body)
        self._on_update(self.lineage, kind, "")
        if self.lineage.stage in (Stage.PROPOSE, Stage.HALTED):
            self.store.prune(self.lineage.kept_weights)
            shutil.rmtree(self.folder / WORK, ignore_errors=True)

    def _halt(self, found: str) -> None:
        reason = f"the evaluator changed from {self.lineage.evaluator} to {found}"
        self._append("halt", {"reason": reason})

    def acknowledge(self) -> None:
        """Go on after a halt: a person has looked at its reason.

        Raises:
            ValueError: Nothing is halted.
        """
        if self.lineage.stage != Stage.HALTED:
            raise ValueError(f"resume: expected a halted lineage, received {self.lineage.stage}")
        self._append("acknowledge", {"evaluator": evaluator_hash()})

    def _append(self, kind: str, body: Body) -> None:
        self._write(kind, body)
        self._on_update(self.lineage, kind, "")

    def _write(self, kind: str, body: Body) -> None:
        """Fold an event in and write it: what does not follow is not written."""
        try:
            self.lineage.apply(kind, body)
            self.ledger.append(kind, body, self.lineage.champion)
        except BaseException:  # a full disk, an interrupt: the state is what the ledger says
            self.lineage = Lineage(self.ledger.events())
            raise

    def _work(self) -> tuple[str, Body]:
        """The event that the stage asks for."""
        lineage, config = self.lineage, self.lineage.config
        match lineage.stage:
            case Stage.BASELINE:
                body, (m,) = self._measure([lineage.champion], BASELINE_TASKS, with_curve=True)
                body |= {"scores": _as_json(m), "failure": m.failure}
            case Stage.PROPOSE:
                body = self._propose()
            case Stage.TRAIN:
                body = self._train()
            case Stage.SCREEN:
                body = self._screen()
            case Stage.CONFIRM:
                body = self._confirm()
            case Stage.ATTRIBUTE:
                most = config.attribution_pairs
                body = self._duel_on_primary(lineage.control_weights, lineage.attribution, most)
            case Stage.COMMIT:
                body = {"champion": lineage.chosen_candidate.weights, "label": lineage.label}
            case Stage.CANARY:
                most = config.canary_pairs
                body = self._duel_on_primary(lineage.previous, lineage.harm, most)
            case Stage.ROLLED_BACK:
                return "rollback", {"champion": lineage.previous}
            case _:  # DECIDED, FAILED
                return "generation", {"outcome": lineage.outcome, "reason": lineage.reason}
        return lineage.stage.lower(), body

    def _propose(self) -> Body:
        from ssm_metarl.checkpoint import unpack
        from ssm_metarl.config import MetaTrainingConfig
        from ssm_metarl.settings import rebuild

        lineage, generation = self.lineage, self.lineage.generation + 1
        parent = unpack(self.store.get(lineage.champion), "champion")
        recipe = rebuild(MetaTrainingConfig, parent.settings, "champion: training")
        proposals = propose(
            recipe,
            lineage.history,
            seed=lineage.config.seed,
            generation=generation,
            count=lineage.config.num_candidates,
        )
        roles = [(Role.CANDIDATE, proposal) for proposal in proposals]
        roles += [(Role.CONTROL, {}), (Role.PLACEBO, {})]
        candidates = [
            {"role": role, "proposal": proposal, "changes": changes_of(proposal, recipe)}
            for role, proposal in roles
        ]
        return {"generation": generation, "candidates": candidates}

    def _train(self) -> Body:
        """Train all candidates; those that had finished before a kill are not trained again."""
        lineage, config = self.lineage, self.lineage.config
        rng = seeding.generator(config.seed, "rsi-training", lineage.generation)
        seed, placebo_seed = (int(s) for s in rng.integers(2**31, size=2))
        results = self.ledger.results()
        parent = self.store.get(lineage.champion)
        waiting = [i for i in range(len(lineage.candidates)) if str(i) not in results]
        jobs = [
            Training(
                parent=parent,
                family=self.family,
                changes=lineage.candidates[i].changes,
                seed=placebo_seed if lineage.candidates[i].role == Role.PLACEBO else seed,
                env_steps=config.train_steps,
                max_parameters=config.max_parameters,
                work=str(self.folder / WORK / f"{lineage.generation}-{i}"),
            )
            for i in waiting
        ]

        def keep(index: int, outcome: Outcome) -> None:
            # What a failed one took is not known: "equal compute" must not be too little.
            trained: Trained = outcome.value or Trained(b"", 0, config.train_steps)
            key = str(waiting[index])
            results[key] = {
                "weights": self.store.put(trained.weights) if trained.weights else "",
                "parameters": trained.parameters,
                "env_steps": trained.env_steps,
                "failure": outcome.failure,
            }
            self.ledger.keep_result(key, results[key])
            failed = sum(r["failure"] is not None for r in results.values())
            detail = f"{len(results)} of {len(lineage.candidates)}"
            self._on_update(lineage, "trained", detail + (f", {failed} failed" if failed else ""))

        if len(jobs) > 1 and not self._compiled:
            # Workers that compile side by side can get code that rounds differently: one first.
            self.executor.run([replace(jobs[0], changes={}, env_steps=1, work=None)])
            self._compiled = True
        self.executor.run(jobs, on_done=keep)
        return {"results": [results[str(i)] for i in range(len(lineage.candidates))]}

    def _screen(self) -> Body:
        lineage = self.lineage
        done = lineage.screened_pairs
        count = next(n for n in lineage.config.screen_pairs if n > done) - done
        entered = lineage.to_screen()
        weights = [lineage.champion, *(lineage.candidates[i].weights for i in entered)]
        body, (old, *new) = self._measure(weights, count)
        scores = {str(i): _as_json(m)[PRIMARY] for i, m in zip(entered, new, strict=True)}
        return body | {"old": _as_json(old)[PRIMARY], "new": scores}

    def _confirm(self) -> Body:
        gate = self.lineage.running
        with_curve = bool(set(CURVE_METRICS) & set(gate.open_metrics))
        return self._duel(self.lineage.opponent, gate.primary, gate.cap, with_curve=with_curve)

    def _duel_on_primary(self, opponent: str, test: EProcess, most_pairs: int) -> Body:
        body = self._duel(opponent, test, most_pairs)
        return body | {side: body[side][PRIMARY] for side in ("old", "new")}

    def _duel(
        self, opponent: str, test: EProcess, most_pairs: int, *, with_curve: bool = False
    ) -> Body:
        """The chosen candidate against another, on as many pairs as the test may still have."""
        count = min(self.lineage.config.batch_pairs, most_pairs - test.num_pairs)
        sides = [opponent, self.lineage.chosen_candidate.weights]
        body, (old, new) = self._measure(sides, count, with_curve=with_curve)
        return body | {"old": _as_json(old), "new": _as_json(new)}

    def _measure(
        self, weights: Sequence[str], count: int, *, with_curve: bool = False
    ) -> tuple[Body, list[Measured]]:
        """Measure policies on the next tasks of the stage's stream, all of them on the same ones.

        A measurement that crashes or hangs leaves scores that are no numbers: its pairs count as
        the worst there is.

        Returns:
            Which tasks were used and what they cost, for the event; and what was found.
        """
        config, stream = self.lineage.config, self.lineage.stage.lower()
        start = self.lineage.next_index.get(stream, 0)
        jobs = [
            Measurement(
                weights=self.store.get(name),
                family=self.family,
                stream=stream,
                seed=config.seed,
                start=start,
                count=count,
                with_curve=with_curve,
                support_steps=config.support_steps,
                curve_steps=config.curve_steps,
            )
            for name in weights
        ]
        measured = [
            lost(count, with_curve, o.failure) if o.failure else o.value
            for o in self.executor.run(jobs)
        ]
        spent = sum(m.env_steps for m in measured)
        return {"start": start, "count": count, "env_steps": spent}, measured

    def close(self) -> None:
        """End the workers, close the ledger, remove the folder if it was the agent's own."""
        self.executor.close()
        self.ledger.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _stretch(stage: Stage, body: Body) -> Body:
    """The tasks that a stage has used although its event does not count; empty for none."""
    if "start" not in body:
        return {}
    stretch = {name: body[name] for name in ("start", "count", "env_steps")}
    return {"stream": stage.lower(), **stretch}


def _as_json(measured: Measured) -> dict[str, list[float | None]]:
    """Scores for an event: JSON knows no NaN, and one that crashed is null."""
    return {n: [s if s == s else None for s in scores] for n, scores in measured.scores.items()}
