"""The state of a lineage, as the fold of its events: to read the ledger is to resume.

Place in the flow: stage 8. `agent` asks for the stage, does its work, and appends an event; the
event is folded in here, and the next stage follows. Every verdict is computed here, from the scores
in the events, and nowhere else: replaying the ledger therefore checks every decision again.

    INIT -> BASELINE -> PROPOSE -> TRAIN -> SCREEN -> CONFIRM -> ATTRIBUTE -> COMMIT -> CANARY
                           ^                  |          |                     |
                           +------------------+----------+---------------------+

with FAILED beside every stage that works, ROLLED_BACK after a canary that found harm, and HALTED
after too many failures in a row, which only an acknowledgement ends.

The trap: a task that was used must never be used again. Every event names the stretch of its
stream that it used, and one that does not begin where the last one ended is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from ssm_metarl.recursive_self_improvement.generation import (
    Candidate,
    DecisionMismatch,
    Outcome,
    Record,
    Role,
    Stage,
)
from ssm_metarl.recursive_self_improvement.ledger import Event
from ssm_metarl.recursive_self_improvement.metrics import STABILITY_QUANTILE, differences
from ssm_metarl.settings import rebuild

Body = Mapping[str, Any]


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
        self.champion = self.first = self.best = self.previous = self.opponent = ""
        self.sizes: dict[str, int] = {}
        """Parameters of champion, first and best, by the name of their weights."""
        self.champions: list[str] = []
        """All champions in the order of their acceptance, the first one included."""
        self.baseline: dict[str, float] = {}
        self.outcome = Outcome.REJECTED
        self.stability_cap = 0.0
        self.confirmations = self.acceptances = self.failures = self.env_steps = 0
        self.next_index: dict[str, int] = {}
        self.records: list[Record] = []
        self.history: list[tuple[dict[str, float], float]] = []
        """Every proposal screened, with its mean difference, for the proposer."""
        self._clear()
        for event in events:
            self.apply(event.kind, event.body)

    def _clear(self) -> None:
        """Forget the generation before."""
        self.candidates: list[Candidate] = []
        self.chosen: int | None = None
        self.confirmation: Confirmation | None = None
        self.attribution = EProcess(0.0, self.config.attribution_alpha)
        self._watch(acceptances=1)
        self.label = self.reason = ""
        self.screened_returns: list[float] = []
        """The champion's in this generation's screening."""

    def _watch(self, acceptances: int) -> None:
        """Tests of the canary: against "no harm", and against "no gain", which ends it early."""
        alpha = self.config.canary_alpha
        self.harm = EProcess(0.0, spent_alpha(alpha, acceptances))
        self.gain = EProcess(0.0, alpha)

    def apply(self, kind: str, body: Body) -> None:
        """Fold one event in.

        Raises:
            DecisionMismatch: It does not follow from those before it.
        """
        handler = getattr(self, f"_on_{kind}", None)
        if handler is None:
            raise DecisionMismatch(f"event: expected a known kind, received {kind!r}")
        try:
            handler(body)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise DecisionMismatch(f"{kind}: expected other fields ({error!r})") from None

    def _enter(self, kind: str, *stages: Stage) -> None:
        _require(self.stage in stages, f"what follows {self.stage}", kind)

    def _use(self, stream: str, body: Body) -> None:
        """Mark a stretch of a stream as used, and its steps as spent."""
        start, expected, count = body["start"], self.next_index.get(stream, 0), body["count"]
        _require(start == expected, f"{stream} tasks from {expected} on", start)
        _require(count >= 1, "at least 1 task", count)
        for scores in _lists(body):
            _require(len(scores) == count, f"scores of {count} tasks", len(scores))
        self.next_index[stream] = start + count
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
        _require(all(low <= v <= high for v in self.baseline.values()),
                 f"returns from {low:g} to {high:g}", self.baseline)  # fmt: skip
        self.stage = Stage.PROPOSE

    # PROPOSE, TRAIN

    def _on_propose(self, body: Body) -> None:
        self._enter("propose", Stage.PROPOSE)
        number = self.generation + 1
        _require(body["generation"] == number, f"generation {number}", body["generation"])
        self._clear()
        self.generation = number
        self.candidates = [
            Candidate(Role(c["role"]), dict(c["proposal"]), dict(c["changes"]))
            for c in body["candidates"]
        ]
        self.stage = Stage.TRAIN

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

    def _trained(self, *roles: Role) -> list[int]:
        """Candidates of these roles that have weights, in order."""
        return [i for i, c in enumerate(self.candidates) if c.role in roles and c.failure is None]

    def _contenders(self) -> list[int]:
        """Candidates that may win, in order."""
        trained = self._trained(Role.CANDIDATE, Role.CONTROL)
        return [i for i in trained if not self.candidates[i].dropped]

    def to_screen(self) -> list[int]:
        """Candidates that the next screening round measures: contenders, and the placebo."""
        return self._contenders() + self._trained(Role.PLACEBO)

    @property
    def screened_pairs(self) -> int:
        """Screening tasks of this generation so far."""
        return max((len(c.screened) for c in self.candidates), default=0)

    # SCREEN

    def _on_screen(self, body: Body) -> None:
        self._enter("screen", Stage.SCREEN)
        self._use("screen", body)
        expected = self.to_screen()
        _require(set(body["new"]) == set(map(str, expected)), f"scores of {expected}",
                 sorted(body["new"]))  # fmt: skip
        for index, new in body["new"].items():
            self.candidates[int(index)].screened += self._primary(new, body["old"])
        low = self.bounds[0]
        self.screened_returns += [low if s is None else float(s) for s in body["old"]]
        if self.screened_pairs < self.config.screen_pairs[-1]:
            ranked = sorted(self._contenders(), key=lambda i: -self.candidates[i].mean)
            for loser in ranked[-(-len(ranked) // 2) :]:
                self.candidates[loser].dropped = True
        else:
            self._choose()

    def _primary(self, new: Sequence[Any], old: Sequence[Any]) -> list[float]:
        """Differences of the primary metric alone."""
        return differences({PRIMARY: new}, {PRIMARY: old}, self.bounds)[PRIMARY]

    def _choose(self) -> None:
        """Take the best to confirmation, if screening gives it a chance."""
        low, mean = self.bounds[0], float(np.mean(self.screened_returns))
        least = low + self.config.floor * (self.baseline[PRIMARY] - low)
        if mean < least:
            self._fail(f"the champion's return {mean:.1f} is below the floor {least:.1f}")
            return
        self.stability_cap = float(np.quantile(self.screened_returns, STABILITY_QUANTILE))
        candidates = self.candidates
        self.history += [
            (candidates[i].proposal, candidates[i].mean) for i in self._trained(Role.CANDIDATE)
        ]
        self.chosen = max(self._contenders(), key=lambda i: candidates[i].mean)
        best = self.chosen_candidate
        # The best ever, not the champion, which may be a smaller one that is a little worse.
        self.opponent, margin = self.best, 0.0
        if best.parameters > self.sizes[self.champion]:
            margin = self.config.margin
        elif best.parameters < self.sizes[self.champion]:
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
        verdict = self.running.update(
            differences(body["new"], body["old"], self.bounds, stability_cap=self.stability_cap)
        )
        if verdict == Verdict.OPEN and self.budget_left <= 0:
            verdict = Verdict.INCONCLUSIVE
        if verdict == Verdict.ACCEPTED:
            self.label = "training"
            alone = self._trained(Role.CONTROL) in ([], [self.chosen])
            self.stage = Stage.COMMIT if alone else Stage.ATTRIBUTE
        elif verdict == Verdict.WORSE:
            self._decide(Outcome.REJECTED, "confirmation found it worse than it must be")
        elif verdict == Verdict.INCONCLUSIVE:
            self._decide(Outcome.INCONCLUSIVE, "the pairs were used up")

    @property
    def running(self) -> Confirmation:
        """The confirmation, from its beginning on."""
        assert self.confirmation is not None
        return self.confirmation

    @property
    def chosen_candidate(self) -> Candidate:
        """The candidate under confirmation or after it."""
        assert self.chosen is not None
        return self.candidates[self.chosen]

    @property
    def control_weights(self) -> str:
        """Weights of the control that the chosen candidate is compared with."""
        return self.candidates[self._trained(Role.CONTROL)[0]].weights

    def _on_attribute(self, body: Body) -> None:
        self._enter("attribute", Stage.ATTRIBUTE)
        self._use("attribute", body)
        self.attribution.update(self._primary(body["new"], body["old"]))
        found = self.attribution.crossed_at is not None
        if found:
            self.label = "change"
        if found or self._over(self.attribution, self.config.attribution_pairs):
            self.stage = Stage.COMMIT

    def _over(self, test: EProcess, most_pairs: int) -> bool:
        """Whether a test may have no more pairs."""
        return test.num_pairs >= most_pairs or self.budget_left <= 0

    def _on_commit(self, body: Body) -> None:
        self._enter("commit", Stage.COMMIT)
        chosen = self.chosen_candidate
        _require(body["champion"] == chosen.weights, chosen.weights, body["champion"])
        _require(body["label"] == self.label, self.label, body["label"])
        self.previous, self.champion = self.champion, chosen.weights
        self.sizes[self.champion] = chosen.parameters
        self.champions.append(self.champion)
        self.acceptances += 1
        self._watch(self.acceptances)
        self.stage = Stage.CANARY

    # CANARY

    def _on_canary(self, body: Body) -> None:
        self._enter("canary", Stage.CANARY)
        self._use("canary", body)
        difference = np.array(self._primary(body["new"], body["old"]))
        self.harm.update(-difference)
        self.gain.update(difference)
        gained = self.gain.crossed_at is not None
        if self.harm.crossed_at is not None:
            self.stage = Stage.ROLLED_BACK
        elif gained or self._over(self.harm, self.config.canary_pairs):
            # What merely is no worse is no new best, unless the canary has proven it better.
            if self.running.margin >= 0 or (gained and self.previous == self.best):
                self.best = self.champion
            self._decide(Outcome.ACCEPTED, self._why_accepted())

    def _why_accepted(self) -> str:
        if self.running.margin < 0:
            return "smaller, and no worse"
        if self.label == "change":
            return "improved by the change"
        return "improved by training, not by the change"

    def _on_rollback(self, body: Body) -> None:
        self._enter("rollback", Stage.ROLLED_BACK)
        _require(body["champion"] == self.previous, self.previous, body["champion"])
        self._restore()
        self._decide(Outcome.ROLLED_BACK, "the canary found it worse than the champion before")

    def _restore(self) -> None:
        self.champion = self.previous
        self.champions.pop()

    # the end of a generation

    def _decide(self, outcome: Outcome, reason: str) -> None:
        self.outcome, self.reason, self.stage = outcome, reason, Stage.DECIDED

    def _fail(self, reason: str) -> None:
        self.outcome, self.reason, self.stage = Outcome.FAILED, reason, Stage.FAILED

    def _on_generation(self, body: Body) -> None:
        self._enter("generation", Stage.DECIDED, Stage.FAILED)
        _require(body["outcome"] == self.outcome, self.outcome, body["outcome"])
        self._close()

    def _on_failure(self, body: Body) -> None:
        """Something that no stage expects went wrong: a crash, a score out of bounds."""
        at_work = self.stage not in (Stage.INIT, Stage.HALTED)
        _require(at_work, "a failure while at work", self.stage)
        if used := body.get("used"):
            self._use(used["stream"], used)
        if self.stage in (Stage.BASELINE, Stage.PROPOSE):
            self._clear()
        if self.stage in (Stage.CANARY, Stage.ROLLED_BACK):  # never watched to the end, or harmful
            self._restore()
        self._fail(str(body["reason"]))
        self._close()

    def _close(self) -> None:
        gate = self.confirmation
        self.records.append(
            Record(
                generation=self.generation,
                outcome=self.outcome,
                reason=self.reason,
                changes=None if self.chosen is None else self.chosen_candidate.changes,
                label=self.label if self.outcome == Outcome.ACCEPTED else "",
                gain=None if gate is None else gate.mean,
                wealth=() if gate is None else tuple(gate.wealth),
                threshold=0.0 if gate is None else gate.primary.threshold,
                champion_return=float(np.mean(self.screened_returns or [self.bounds[0]])),
                champion=self.champion,
                env_steps=self.env_steps,
                candidates=tuple((c.role.value, c.mean) for c in self.candidates if c.screened),
            )
        )
        self.failures = self.failures + 1 if self.outcome == Outcome.FAILED else 0
        if self.failures >= self.config.max_failures:
            self.stage = Stage.HALTED
        else:
            self._go_on()

    def _go_on(self) -> None:
        self.stage = Stage.PROPOSE if self.baseline else Stage.BASELINE

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
        self._go_on()

    @property
    def kept_weights(self) -> set[str]:
        """Weights that stay: first, best, champion and the last few, and those in use."""
        kept = {self.first, self.best, self.champion}
        kept.update(self.champions[-self.config.keep_champions :])
        if self.stage not in (Stage.PROPOSE, Stage.HALTED, Stage.BASELINE):
            kept.update(c.weights for c in self.candidates if c.weights)
        return kept


def _require(condition: bool, expected: str, received: object) -> None:
    if not condition:
        raise DecisionMismatch(f"event: expected {expected}, received {received!r}")


def _lists(raw: Any) -> list[list[Any]]:
    """All lists in an event's body."""
    if isinstance(raw, Mapping):
        return [found for value in raw.values() for found in _lists(value)]
    return [raw] if isinstance(raw, list) else []
