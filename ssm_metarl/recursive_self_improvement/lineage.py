"""The state of a lineage, as the fold of its events: to read the ledger is to resume.

Place in the flow: stage 8. `agent` asks for the stage, does its work, and appends an event; the
event is folded in here, and the next stage follows. Every verdict is computed here, from the scores
in the events, and nowhere else: replaying the ledger therefore checks every decision again.

    INIT -> BASELINE -> PROPOSE -> TRAIN -> SCREEN -> CONFIRM -> ATTRIBUTE -> COMMIT -> CANARY
                           ^                  |          |                     |
                           +------------------+----------+---------------------+

with FAILED beside every stage that works, ROLLED_BACK after a canary that found harm, and HALTED
after too many failures in a row, which only an acknowledgement ends. (PAUSED is the process's
affair, not the lineage's: see `supervisor`.)

The trap: a task that was used must never be used again. Every event names the stretch of its
stream that it used, and one that does not begin where the last one ended is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.recursive_self_improvement.gate import (
    PRIMARY,
    Confirmation,
    EProcess,
    Verdict,
    spent_alpha,
)
from ssm_metarl.recursive_self_improvement.ledger import Event
from ssm_metarl.recursive_self_improvement.metrics import STABILITY_QUANTILE, differences
from ssm_metarl.settings import rebuild

Body = Mapping[str, Any]


class Stage(StrEnum):
    """What the lineage does next."""

    INIT = "INIT"
    BASELINE = "BASELINE"
    PROPOSE = "PROPOSE"
    TRAIN = "TRAIN"
    SCREEN = "SCREEN"
    CONFIRM = "CONFIRM"
    ATTRIBUTE = "ATTRIBUTE"
    COMMIT = "COMMIT"
    CANARY = "CANARY"
    ROLLED_BACK = "ROLLED_BACK"
    DECIDED = "DECIDED"
    FAILED = "FAILED"
    HALTED = "HALTED"


class Outcome(StrEnum):
    """How a generation ended."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    ROLLED_BACK = "rolled back"
    FAILED = "failed"


class Role(StrEnum):
    """What a candidate is there for."""

    CANDIDATE = "candidate"
    CONTROL = "control"
    """The champion, trained on without a change; it may win."""
    PLACEBO = "placebo"
    """Another control with another seed, never promoted: what luck looks like."""


@dataclass
class Candidate:
    """One candidate of the running generation."""

    role: Role
    proposal: dict[str, float]
    changes: dict[str, Any]
    weights: str = ""
    """Name of its weights once it is trained."""
    parameters: int = 0
    failure: str | None = None
    """Why there are none."""
    screened: list[float] = field(default_factory=list)
    """Primary differences to the champion in screening."""
    dropped: bool = False
    """Whether screening dropped it."""

    @property
    def mean(self) -> float:
        """Mean difference in screening; the worst there is before any."""
        return float(np.mean(self.screened)) if self.screened else -1.0


@dataclass(frozen=True)
class Record:
    """A generation that has ended."""

    generation: int
    outcome: Outcome
    reason: str
    changes: dict[str, Any] | None
    """Those of the candidate that was confirmed or tried; None where none came so far."""
    label: str
    """What an accepted one was improved by: the change, or the training alone."""
    gain: float | None
    """Its mean primary difference in confirmation."""
    wealth: tuple[float, ...]
    """Of the confirmation, after every pair."""
    threshold: float
    """The wealth that would have accepted it."""
    champion_return: float
    """Mean return of the champion before it, in screening."""
    champion: str
    """The champion afterwards."""
    env_steps: int
    """Of the lineage, by then."""
    candidates: tuple[tuple[str, float], ...]
    """Role of each candidate and its mean difference in screening."""


class DecisionMismatch(ValueError):
    """An event does not follow from those before it."""


class Lineage:
    """A lineage's state; `apply` is the only way to change it.

    Args:
        events: Those so far, in order.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.stage = Stage.INIT
        self.config = RSIConfig()
        self.family, self.bounds = "", (0.0, 1.0)
        self.evaluator = ""
        self.generation = 0
        self.champion = self.first = self.best = ""
        self.sizes: dict[str, int] = {}
        """Parameters of champion, first and best, by the name of their weights."""
        self.champions: list[str] = []
        """All champions in the order of their acceptance, the first one included."""
        self.baseline: dict[str, float] = {}
        self.candidates: list[Candidate] = []
        self.chosen: int | None = None
        self.opponent = ""
        self.confirmation: Confirmation | None = None
        self.attribution: EProcess | None = None
        self.canary: tuple[EProcess, EProcess] | None = None
        """Against "no harm", and against "no gain", which ends the watch early."""
        self.previous = ""
        self.label, self.reason = "", ""
        self.outcome = Outcome.REJECTED
        self.screened_returns: list[float] = []
        """The champion's in this generation's screening."""
        self.stability_cap = 0.0
        self.confirmations = self.acceptances = self.failures = self.env_steps = 0
        self.next_index: dict[str, int] = {}
        self.records: list[Record] = []
        self.history: list[tuple[dict[str, float], float]] = []
        """Every proposal screened, with its mean difference, for the proposer."""
        for event in events:
            self.apply(event.kind, event.body)

    def apply(self, kind: str, body: Body) -> None:
        """Fold one event in.

        Raises:
            DecisionMismatch: It does not follow from those before it.
        """
        handler: Callable[[Body], None] | None = getattr(self, f"_on_{kind}", None)
        if handler is None:
            raise DecisionMismatch(f"event: expected a known kind, received {kind!r}")
        try:
            handler(body)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise DecisionMismatch(f"{kind}: expected other fields ({error!r})") from None

    def _require(self, condition: bool, expected: str, received: object) -> None:
        if not condition:
            raise DecisionMismatch(f"event: expected {expected}, received {received!r}")

    def _enter(self, kind: str, *stages: Stage) -> None:
        self._require(self.stage in stages, f"what follows {self.stage}", kind)

    def _use(self, stream: str, body: Body) -> None:
        """Mark a stretch of a stream as used, and its steps as spent."""
        start, expected = body["start"], self.next_index.get(stream, 0)
        self._require(start == expected, f"{stream} tasks from {expected} on", start)
        self._require(body["count"] >= 1, "at least 1 task", body["count"])
        for scores in _lists(body):
            self._require(len(scores) == body["count"], f"scores of {body['count']} tasks",
                          len(scores))  # fmt: skip
        self.next_index[stream] = start + body["count"]
        self.env_steps += body["env_steps"]

    @property
    def budget_left(self) -> float:
        """Environment steps that may still be spent."""
        limit = self.config.max_env_steps
        return float("inf") if limit is None else limit - self.env_steps

    @property
    def alpha_left(self) -> float:
        """What is left of the chance of a false upgrade."""
        spent = (spent_alpha(self.config.alpha, k + 1) for k in range(self.confirmations))
        return self.config.alpha - sum(spent)

    def count(self, outcome: Outcome) -> int:
        """Generations that ended so."""
        return sum(record.outcome == outcome for record in self.records)

    # INIT, BASELINE

    def _on_init(self, body: Body) -> None:
        self._enter("init", Stage.INIT)
        self.config = rebuild(RSIConfig, dict(body["config"]), "config")
        low, high = body["bounds"]
        self.family, self.bounds, self.evaluator = body["family"], (low, high), body["evaluator"]
        self.champion = self.first = self.best = body["champion"]
        self.champions = [self.champion]
        self.sizes = {self.champion: body["parameters"]}
        self.stage = Stage.BASELINE

    def _on_baseline(self, body: Body) -> None:
        self._enter("baseline", Stage.BASELINE)
        self._use("baseline", body)
        if all(score is None for scores in body["scores"].values() for score in scores):
            why = f": {body['failure']}" if body["failure"] else ""
            self._fail(f"generation 0 could not be measured{why}")
            return
        low, high = self.bounds
        self.baseline = {
            name: float(np.mean([low if s is None else s for s in scores]))
            for name, scores in body["scores"].items()
        }
        self._require(all(low <= v <= high for v in self.baseline.values()),
                      f"returns from {low:g} to {high:g}", self.baseline)  # fmt: skip
        self.stage = Stage.PROPOSE

    # PROPOSE, TRAIN

    def _on_propose(self, body: Body) -> None:
        self._enter("propose", Stage.PROPOSE)
        self._require(body["generation"] == self.generation + 1,
                      f"generation {self.generation + 1}", body["generation"])  # fmt: skip
        self._clear()
        self.generation = body["generation"]
        self.candidates = [
            Candidate(Role(c["role"]), dict(c["proposal"]), dict(c["changes"]))
            for c in body["candidates"]
        ]
        self.stage = Stage.TRAIN

    def _clear(self) -> None:
        """Forget the generation before."""
        self.chosen, self.confirmation, self.attribution, self.canary = None, None, None, None
        self.label = self.reason = ""
        self.candidates, self.screened_returns = [], []

    def _on_train(self, body: Body) -> None:
        self._enter("train", Stage.TRAIN)
        for candidate, result in zip(self.candidates, body["results"], strict=True):
            candidate.failure = result["failure"]
            candidate.weights, candidate.parameters = result["weights"], result["parameters"]
            self.env_steps += result["env_steps"]
        if self._contenders():
            self.stage = Stage.SCREEN
        else:
            self._fail(f"no training succeeded: {self.candidates[0].failure}")

    def _contenders(self) -> list[int]:
        """Candidates that may win, in order."""
        return [
            i
            for i, c in enumerate(self.candidates)
            if c.role != Role.PLACEBO and c.failure is None and not c.dropped
        ]

    def to_screen(self) -> list[int]:
        """Candidates that the next screening round measures: contenders, and the placebo."""
        placebos = [
            i for i, c in enumerate(self.candidates) if c.role == Role.PLACEBO and c.failure is None
        ]
        return self._contenders() + placebos

    @property
    def screened_pairs(self) -> int:
        """Screening tasks of this generation so far."""
        return max((len(c.screened) for c in self.candidates), default=0)

    # SCREEN

    def _on_screen(self, body: Body) -> None:
        self._enter("screen", Stage.SCREEN)
        self._use("screen", body)
        self._require(set(body["new"]) == {str(i) for i in self.to_screen()},
                      f"scores of {self.to_screen()}", sorted(body["new"]))  # fmt: skip
        old = scores_of({PRIMARY: body["old"]})
        for index, values in body["new"].items():
            new = scores_of({PRIMARY: values})
            difference = differences(new, old, self.bounds)[PRIMARY]
            self.candidates[int(index)].screened += difference
        self.screened_returns += np.nan_to_num(old[PRIMARY], nan=self.bounds[0]).tolist()
        if self.screened_pairs < self.config.screen_pairs[-1]:
            ranked = sorted(self._contenders(), key=lambda i: -self.candidates[i].mean)
            for loser in ranked[-(-len(ranked) // 2) :]:
                self.candidates[loser].dropped = True
        else:
            self._choose()

    def _breaks_floor(self) -> bool:
        low, mean = self.bounds[0], float(np.mean(self.screened_returns))
        least = low + self.config.floor * (self.baseline[PRIMARY] - low)
        if mean < least:
            self._fail(f"the champion's return {mean:.1f} is below the floor {least:.1f}")
        return mean < least

    def _choose(self) -> None:
        """Take the best to confirmation, if screening gives it a chance."""
        if self._breaks_floor():
            return
        self.stability_cap = float(np.quantile(self.screened_returns, STABILITY_QUANTILE))
        for candidate in self.candidates:
            if candidate.role == Role.CANDIDATE and candidate.failure is None:
                self.history.append((candidate.proposal, candidate.mean))
        self.chosen = max(self._contenders(), key=lambda i: self.candidates[i].mean)
        best = self.candidates[self.chosen]
        size, champion_size = best.parameters, self.sizes[self.champion]
        # The best ever, not the champion, which may be a smaller one that is a little worse.
        self.opponent, margin = self.best, 0.0
        if size > champion_size:
            margin = self.config.margin
        elif size < champion_size:
            margin = -self.config.smaller_tolerance
        if best.mean <= margin:
            self._decide(Outcome.REJECTED, "screening found nothing better")
            return
        self.confirmations += 1
        self.confirmation = Confirmation(self.config, self.confirmations, margin)
        self.stage = Stage.CONFIRM

    # CONFIRM, ATTRIBUTE, COMMIT

    def _on_confirm(self, body: Body) -> None:
        self._enter("confirm", Stage.CONFIRM)
        self._use("confirm", body)
        confirmation = self._running()
        difference = differences(
            scores_of(body["new"]),
            scores_of(body["old"]),
            self.bounds,
            stability_cap=self.stability_cap,
        )
        verdict = confirmation.update(difference)
        if verdict == Verdict.OPEN and self.budget_left <= 0:
            verdict = Verdict.INCONCLUSIVE
        if verdict == Verdict.ACCEPTED:
            control = self._control()
            self.attribution = EProcess(0.0, self.config.attribution_alpha)
            self.label = "training"
            self.stage = Stage.COMMIT if control in (None, self.chosen) else Stage.ATTRIBUTE
        elif verdict == Verdict.WORSE:
            self._decide(Outcome.REJECTED, "confirmation found it worse than it must be")
        elif verdict == Verdict.INCONCLUSIVE:
            self._decide(Outcome.INCONCLUSIVE, "the pairs were used up")

    def _running(self) -> Confirmation:
        assert self.confirmation is not None
        return self.confirmation

    def _control(self) -> int | None:
        """The control, if it trained."""
        return next(
            (
                i
                for i, c in enumerate(self.candidates)
                if c.role == Role.CONTROL and c.failure is None
            ),
            None,
        )

    @property
    def control_weights(self) -> str:
        """Weights of the control that the chosen candidate is compared with."""
        control = self._control()
        assert control is not None
        return self.candidates[control].weights

    @property
    def chosen_candidate(self) -> Candidate:
        """The candidate under confirmation or after it."""
        assert self.chosen is not None
        return self.candidates[self.chosen]

    def _on_attribute(self, body: Body) -> None:
        self._enter("attribute", Stage.ATTRIBUTE)
        self._use("attribute", body)
        test = self.attribution
        assert test is not None
        test.update(self._primary(body))
        if test.crossed_at is not None:
            self.label = "change"
        if (
            test.crossed_at is not None
            or test.num_pairs >= self.config.attribution_pairs
            or self.budget_left <= 0
        ):
            self.stage = Stage.COMMIT

    def _primary(self, body: Body) -> list[float]:
        new, old = ({PRIMARY: body[side]} for side in ("new", "old"))
        return differences(scores_of(new), scores_of(old), self.bounds)[PRIMARY]

    def _on_commit(self, body: Body) -> None:
        self._enter("commit", Stage.COMMIT)
        chosen = self.chosen_candidate
        self._require(body["champion"] == chosen.weights, chosen.weights, body["champion"])
        self._require(body["label"] == self.label, self.label, body["label"])
        self.previous, self.champion = self.champion, chosen.weights
        self.sizes[self.champion] = chosen.parameters
        self.champions.append(self.champion)
        self.acceptances += 1
        alpha = spent_alpha(self.config.canary_alpha, self.acceptances)
        self.canary = EProcess(0.0, alpha), EProcess(0.0, self.config.canary_alpha)
        self.stage = Stage.CANARY

    # CANARY

    def _on_canary(self, body: Body) -> None:
        self._enter("canary", Stage.CANARY)
        self._use("canary", body)
        assert self.canary is not None
        harm, gain = self.canary
        difference = np.array(self._primary(body))
        harm.update(-difference)
        gain.update(difference)
        if harm.crossed_at is not None:
            self.stage = Stage.ROLLED_BACK
        elif (
            gain.crossed_at is not None
            or harm.num_pairs >= self.config.canary_pairs
            or self.budget_left <= 0
        ):
            # What merely is no worse is no new best, unless the canary has proven it better.
            proven = gain.crossed_at is not None and self.previous == self.best
            if self._running().margin >= 0 or proven:
                self.best = self.champion
            self._decide(Outcome.ACCEPTED, self._why_accepted())

    def _why_accepted(self) -> str:
        if self._running().margin < 0:
            return "smaller, and no worse"
        if self.label == "change":
            return "improved by the change"
        return "improved by training, not by the change"

    def _on_rollback(self, body: Body) -> None:
        self._enter("rollback", Stage.ROLLED_BACK)
        self._require(body["champion"] == self.previous, self.previous, body["champion"])
        self.champion = self.previous
        self.champions.pop()
        self._decide(Outcome.ROLLED_BACK, "the canary found it worse than the champion before")

    # the end of a generation

    def _decide(self, outcome: Outcome, reason: str) -> None:
        self.outcome, self.reason, self.stage = outcome, reason, Stage.DECIDED

    def _fail(self, reason: str) -> None:
        self.outcome, self.reason, self.stage = Outcome.FAILED, reason, Stage.FAILED

    def _on_generation(self, body: Body) -> None:
        self._enter("generation", Stage.DECIDED, Stage.FAILED)
        self._require(body["outcome"] == self.outcome, self.outcome, body["outcome"])
        self._close()

    def _on_failure(self, body: Body) -> None:
        """Something that no stage expects went wrong: a crash, a score out of bounds."""
        self._require(self.stage not in (Stage.INIT, Stage.HALTED), "a failure while at work",
                      self.stage)  # fmt: skip
        if used := body.get("used"):
            self._use(used["stream"], used)
        if self.stage in (Stage.BASELINE, Stage.PROPOSE):
            self._clear()
        if self.stage in (Stage.CANARY, Stage.ROLLED_BACK):  # never watched to the end, or harmful
            self.champion = self.previous
            self.champions.pop()
        self._fail(str(body["reason"]))
        self._close()

    def _close(self) -> None:
        chosen = None if self.chosen is None else self.chosen_candidate
        self.records.append(
            Record(
                generation=self.generation,
                outcome=self.outcome,
                reason=self.reason,
                changes=None if chosen is None else chosen.changes,
                label=self.label if self.outcome == Outcome.ACCEPTED else "",
                gain=None if self.confirmation is None else self.confirmation.mean,
                wealth=tuple(self.confirmation.wealth) if self.confirmation else (),
                threshold=self.confirmation.primary.threshold if self.confirmation else 0.0,
                champion_return=float(np.mean(self.screened_returns or [self.bounds[0]])),
                champion=self.champion,
                env_steps=self.env_steps,
                candidates=tuple((c.role.value, c.mean) for c in self.candidates if c.screened),
            )
        )
        self.failures = self.failures + 1 if self.outcome == Outcome.FAILED else 0
        self.stage = Stage.PROPOSE if self.baseline else Stage.BASELINE
        if self.failures >= self.config.max_failures:
            self.stage = Stage.HALTED

    def _on_halt(self, body: Body) -> None:
        """The evaluator is not the one that the lineage began with: nothing it says counts."""
        if self.stage in (Stage.DECIDED, Stage.FAILED):
            self._close()  # it had ended
        elif self.stage not in (Stage.BASELINE, Stage.PROPOSE):
            self._on_failure(body)
        self.reason, self.stage = str(body["reason"]), Stage.HALTED

    def _on_acknowledge(self, body: Body) -> None:
        """A person has looked at the reason, and lets it go on with the evaluator as it is now."""
        self._enter("acknowledge", Stage.HALTED)
        self.evaluator, self.failures = body["evaluator"], 0
        self.stage = Stage.PROPOSE if self.baseline else Stage.BASELINE

    @property
    def kept_weights(self) -> set[str]:
        """Weights that stay: first, best, champion and the last few, and those in use."""
        recent = self.champions[-self.config.keep_champions :]
        in_use = {c.weights for c in self.candidates if c.weights}
        if self.stage in (Stage.PROPOSE, Stage.HALTED, Stage.BASELINE):
            in_use = set()
        return {self.first, self.best, self.champion, *recent} | in_use


def _lists(raw: Any) -> list[list[Any]]:
    """All lists in an event's body."""
    if isinstance(raw, Mapping):
        return [found for value in raw.values() for found in _lists(value)]
    return [raw] if isinstance(raw, list) else []


def scores_of(raw: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """Scores from JSON, where one that crashed is null."""
    return {n: [float("nan") if s is None else float(s) for s in v] for n, v in raw.items()}
