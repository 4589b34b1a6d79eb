"""The state of a lineage: what each event does, and which ones are refused."""

from dataclasses import asdict

import pytest

from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.recursive_self_improvement.gate import GUARDRAILS, PRIMARY, spent_alpha
from ssm_metarl.recursive_self_improvement.generation import DecisionMismatch, Outcome, Stage
from ssm_metarl.recursive_self_improvement.ledger import Event
from ssm_metarl.recursive_self_improvement.lineage import Lineage

CURVE = GUARDRAILS[:3]
SCREENS = (4, 8, 16)
SIZE = 100


class Script:
    """Events of a lineage, written by hand: returns go from 0 to 100, the champion's are 50."""

    def __init__(self, **settings):
        self.lineage, self.events = Lineage(), []
        config = RSIConfig(screen_pairs=SCREENS, num_candidates=2, **settings)
        self.do("init", config=asdict(config), family="f", bounds=[0.0, 100.0], champion="zero",
                parameters=SIZE, evaluator="e")  # fmt: skip

    def do(self, kind, **body):
        self.lineage.apply(kind, body)
        self.events.append(Event(len(self.events) + 1, kind, body, ""))
        return self.lineage

    def tasks(self, stream, count):
        start = self.lineage.next_index.get(stream, 0)
        return {"start": start, "count": count, "env_steps": 10 * count}

    def baseline(self):
        scores = {name: [50.0] * 4 for name in (PRIMARY, *CURVE)}
        return self.do("baseline", **self.tasks("baseline", 4), scores=scores)

    def propose(self):
        roles = ("candidate", "candidate", "control", "placebo")
        candidates = [{"role": role, "proposal": {}, "changes": {}} for role in roles]
        return self.do("propose", generation=self.lineage.generation + 1, candidates=candidates)

    def train(self, names=None, sizes=(SIZE,) * 4, failures=(None,) * 4):
        names = names or [f"g{self.lineage.generation}-{i}" for i in range(4)]
        results = [
            {"weights": "" if f else n, "parameters": s, "env_steps": 1000, "failure": f}
            for n, s, f in zip(names, sizes, failures, strict=True)
        ]
        return self.do("train", results=results)

    def screen(self, gains, champion=50.0):
        while self.lineage.stage == Stage.SCREEN:
            done = self.lineage.screened_pairs
            count = next(n for n in SCREENS if n > done) - done
            new = {str(i): [50 + gains[i]] * count for i in self.lineage.to_screen()}
            self.do("screen", **self.tasks("screen", count), old=[champion] * count, new=new)
        return self.lineage

    def duel(self, kind, gain, count=200):
        sides = {"old": [50.0] * count, "new": [50.0 + gain] * count}
        return self.do(kind, **self.tasks(kind, count), **sides)

    def confirm(self, gain, count=200):
        names = (PRIMARY, *CURVE)
        old, new = ({n: [50.0 + g] * count for n in names} for g in (0, gain))
        return self.do("confirm", **self.tasks("confirm", count), old=old, new=new)

    def begin(self, gains=(20, 10, 5, 30), **training):
        if self.lineage.stage == Stage.BASELINE:
            self.baseline()
        self.propose()
        self.train(**training)
        return self.screen(gains)

    def commit(self):
        lineage = self.lineage
        champion = lineage.chosen_candidate.weights
        return self.do("commit", champion=champion, label=lineage.label)

    def end(self):
        lineage = self.lineage
        return self.do("generation", outcome=lineage.outcome, reason=lineage.reason)

    def accept(self, canary=20, **training):
        self.begin(**training)
        self.confirm(20)
        if self.lineage.stage == Stage.ATTRIBUTE:
            self.duel("attribute", 20)
        self.commit()
        return self.duel("canary", canary)


@pytest.fixture
def script():
    return Script()


def test_init_and_baseline(script):
    lineage = script.lineage
    assert (lineage.stage, lineage.champion) == (Stage.BASELINE, "zero")
    assert lineage.first == lineage.best == "zero" and lineage.sizes == {"zero": SIZE}
    script.baseline()
    assert lineage.stage == Stage.PROPOSE
    assert lineage.baseline[PRIMARY] == 50 and lineage.env_steps == 40
    assert lineage.next_index == {"baseline": 4}


def test_a_whole_generation(script):
    lineage = script.begin()
    assert lineage.stage == Stage.CONFIRM and lineage.chosen == 0
    assert lineage.confirmations == 1 and lineage.history == [({}, 0.2), ({}, 0.1)]
    assert script.confirm(20).stage == Stage.ATTRIBUTE
    assert lineage.control_weights == "g1-2"
    assert script.duel("attribute", 15).stage == Stage.COMMIT
    assert script.commit().stage == Stage.CANARY
    assert (lineage.champion, lineage.previous, lineage.best) == ("g1-0", "zero", "zero")
    assert script.duel("canary", 20).stage == Stage.DECIDED
    assert lineage.best == "g1-0" and lineage.champions == ["zero", "g1-0"]
    assert script.end().stage == Stage.PROPOSE
    (record,) = lineage.records
    assert record.outcome == Outcome.ACCEPTED and record.label == "change"
    assert record.gain == pytest.approx(0.2) and record.champion_return == 50
    assert record.wealth[-1] >= record.threshold == pytest.approx(1 / spent_alpha(0.05, 1))
    assert lineage.alpha_left == pytest.approx(0.05 - spent_alpha(0.05, 1))
    assert lineage.env_steps == record.env_steps == 40 + 4000 + 160 + 3 * 2000
    again = Lineage(script.events)
    assert (again.champion, again.records, again.stage) == ("g1-0", lineage.records, lineage.stage)


def test_halving_drops_the_worse_half_and_never_the_placebo(script):
    script.baseline()
    script.propose()
    script.train()
    tasks = script.tasks("screen", 4)
    new = {"0": [60.0] * 4, "1": [70.0] * 4, "2": [40.0] * 4, "3": [0.0] * 4}
    lineage = script.do("screen", **tasks, old=[50.0] * 4, new=new)
    assert lineage.to_screen() == [0, 1, 3]
    assert [c.dropped for c in lineage.candidates] == [False, False, True, False]


def test_a_placebo_is_never_chosen_and_a_control_may_be(script):
    lineage = script.begin(gains=(5, 5, 10, 40))
    assert lineage.chosen == 2
    assert script.confirm(20).stage == Stage.COMMIT, "a control is not compared with itself"
    assert lineage.label == "training"


def test_screening_that_finds_nothing_spends_no_alpha(script):
    lineage = script.begin(gains=(0, -1, -2, 30))
    assert (lineage.stage, lineage.outcome) == (Stage.DECIDED, Outcome.REJECTED)
    assert lineage.confirmations == 0 and lineage.alpha_left == 0.05


@pytest.mark.parametrize(("gain", "outcome"), [(-20, Outcome.REJECTED), (0, Outcome.INCONCLUSIVE)])
def test_confirmations_that_prove_nothing(gain, outcome):
    script = Script(confirm_pairs=200)
    script.begin()
    lineage = script.confirm(gain)
    assert (lineage.stage, lineage.outcome) == (Stage.DECIDED, outcome)
    assert script.end().champion == "zero" and lineage.confirmations == 1


def test_without_an_attributed_gain_the_label_is_training(script):
    script.begin()
    script.confirm(20)
    assert script.duel("attribute", 0, count=256).label == "training"
    with pytest.raises(DecisionMismatch, match="training"):
        script.do("commit", champion="g1-0", label="change")
    script.commit()
    script.duel("canary", 20)
    assert script.end().records[0].label == "training"
    assert "not by the change" in script.lineage.records[0].reason


def test_without_a_control_nothing_is_attributed(script):
    script.begin(failures=(None, None, "crash: x", None))
    assert script.confirm(20).stage == Stage.COMMIT and script.lineage.label == "training"


def test_harm_rolls_back_and_was_never_the_best(script):
    lineage = script.accept(canary=-30)
    assert lineage.stage == Stage.ROLLED_BACK
    with pytest.raises(DecisionMismatch, match="zero"):
        script.do("rollback", champion="g1-0")
    assert script.do("rollback", champion="zero").champion == "zero"
    assert lineage.champions == ["zero"] and lineage.best == "zero"
    assert script.end().records[0].outcome == Outcome.ROLLED_BACK
    assert lineage.failures == 0, "no failure: the gate did what it is for"
    assert "g1-0" not in lineage.kept_weights
    script.accept()
    harm = lineage.harm
    assert harm.alpha == pytest.approx(spent_alpha(0.01, 2)), "spent over all acceptances"
    assert lineage.champions == ["zero", "g2-0"]


def test_a_larger_model_needs_a_margin_and_a_smaller_one_meets_the_best(script):
    lineage = script.begin(sizes=(SIZE + 1, SIZE, SIZE, SIZE))
    assert lineage.confirmation.margin == 0.01 and lineage.opponent == "zero"
    smaller = Script()
    smaller.accept()
    smaller.end()
    lineage = smaller.lineage
    lineage.best = "zero"  # as if g1-0 had been a smaller one
    smaller.begin(gains=(0, -1, -5, 0), sizes=(SIZE - 1, SIZE, SIZE, SIZE))
    assert lineage.chosen == 0 and lineage.confirmation.margin == -0.002
    assert lineage.opponent == "zero" != lineage.champion


def test_a_larger_model_within_the_margin_is_not_even_confirmed(script):
    lineage = script.begin(gains=(0.9, 0, 0, 0), sizes=(SIZE + 1, SIZE, SIZE, SIZE))
    assert lineage.outcome == Outcome.REJECTED and lineage.confirmations == 0


@pytest.mark.parametrize(("canary", "best"), [(0, "zero"), (20, "g1-0")])
def test_a_smaller_model_is_the_best_only_where_it_has_proven_better(canary, best):
    script = Script(canary_pairs=200)
    sizes = (SIZE - 1, SIZE, SIZE, SIZE)
    lineage = script.accept(canary=canary, sizes=sizes)
    assert lineage.reason == "smaller, and no worse"
    assert (lineage.champion, lineage.best) == ("g1-0", best)


def test_the_floor(script):
    script.baseline()
    script.propose()
    script.train()
    lineage = script.screen((20, 10, 5, 0), champion=20.0)
    assert lineage.stage == Stage.FAILED and "floor" in lineage.reason
    assert script.end().failures == 1


def test_three_failures_halt_and_anything_else_resets(script):
    script.baseline()

    def fail():
        script.propose()
        script.train(failures=("crash: a", "crash: b", "crash: c", None))
        return script.end()

    assert [fail().failures, fail().failures] == [1, 2]
    script.begin(gains=(-1, -1, -1, 0))
    assert script.end().failures == 0
    stages = [fail().stage, fail().stage, fail().stage]
    assert stages == [Stage.PROPOSE, Stage.PROPOSE, Stage.HALTED]
    with pytest.raises(DecisionMismatch, match="HALTED"):
        script.propose()
    assert script.do("acknowledge", evaluator="e").stage == Stage.PROPOSE
    assert script.lineage.failures == 0


def test_a_failure_leaves_the_champion_its_tasks_and_no_stale_record(script):
    script.accept()
    script.end()
    script.do("failure", reason="ValueError: no proposal")
    record = script.lineage.records[-1]
    assert record.outcome == Outcome.FAILED and record.champion == "g1-0"
    assert (record.gain, record.wealth, record.candidates, record.changes) == (None, (), (), None)
    before = script.begin().env_steps
    used = {"stream": "confirm", **script.tasks("confirm", 64)}
    lineage = script.do("failure", reason="out of bounds", used=used)
    assert lineage.next_index["confirm"] == 264, "tasks that were seen are never used again"
    assert lineage.env_steps == before + 640


@pytest.mark.parametrize("kind", ["failure", "halt"])
@pytest.mark.parametrize("harm", [None, -30.0])
def test_what_ends_a_canary_early_brings_the_old_champion_back(script, kind, harm):
    script.begin()
    script.confirm(20)
    script.duel("attribute", 20)
    script.commit()
    if harm is not None:
        script.duel("canary", harm)
    lineage = script.do(kind, reason="x")
    assert (lineage.champion, lineage.champions) == ("zero", ["zero"])
    assert lineage.records[0].outcome == Outcome.FAILED


def test_a_halt_after_the_decision_leaves_the_decision(script):
    script.accept()
    lineage = script.do("halt", reason="the evaluator changed")
    assert lineage.stage == Stage.HALTED and lineage.champion == lineage.best == "g1-0"
    assert lineage.records[0].outcome == Outcome.ACCEPTED


# What does not follow.

STAGES = {
    "init": lambda s: None,
    "baseline": lambda s: s.baseline(),
    "propose": lambda s: s.propose(),
    "train": lambda s: s.train(),
    "screen": lambda s: s.screen((20, 10, 5, 0)),
    "confirm": lambda s: s.confirm(20),
    "attribute": lambda s: s.duel("attribute", 20),
    "commit": lambda s: s.commit(),
    "canary": lambda s: s.duel("canary", 20),
    "generation": lambda s: s.end(),
}
FITS = {
    "init": {"baseline"}, "baseline": {"propose"}, "propose": {"train"}, "train": {"screen"},
    "screen": {"confirm"}, "confirm": {"attribute"}, "attribute": {"commit"},
    "commit": {"canary"}, "canary": {"generation"}, "generation": {"propose"},
}  # fmt: skip


@pytest.mark.parametrize("after", STAGES)
def test_an_event_that_does_not_fit_the_stage_is_refused(after):
    kinds = (*STAGES, "rollback", "acknowledge")
    for kind in kinds:
        script = Script()
        for name, do in STAGES.items():
            do(script)
            if name == after:
                break
        if kind not in FITS[after]:
            stage = script.lineage.stage
            with pytest.raises(DecisionMismatch, match=f"follows {stage}"):
                script.do(kind)
            assert script.lineage.stage == stage


@pytest.mark.parametrize("start", [100, 199, 201, 0])
def test_a_task_is_used_once(script, start):
    script.begin()
    script.confirm(1, count=200)
    names = (PRIMARY, *CURVE)
    scores = {n: [50.0] * 4 for n in names}
    body = {"count": 4, "env_steps": 0, "old": scores, "new": scores}
    with pytest.raises(DecisionMismatch, match="from 200 on"):
        script.do("confirm", start=start, **body)
    script.do("confirm", start=200, **body)


def test_more_scores_than_tasks_are_refused(script):
    script.begin()
    scores = {n: [50.0] * 4 for n in (PRIMARY, *CURVE)}
    with pytest.raises(DecisionMismatch, match="3 tasks"):
        script.do("confirm", start=0, count=3, env_steps=0, old=scores, new=scores)


def test_wrong_decisions_are_refused(script):
    script.begin()
    script.confirm(20)
    script.duel("attribute", 20)
    for body in ({"champion": "g1-1", "label": "change"}, {"champion": "g1-0", "label": ""}):
        with pytest.raises(DecisionMismatch):
            script.do("commit", **body)
    script.commit()
    script.duel("canary", 20)
    with pytest.raises(DecisionMismatch, match="accepted"):
        script.do("generation", outcome="rejected", reason="")
    script.end()
    with pytest.raises(DecisionMismatch, match="generation 2"):
        script.do("propose", generation=1, candidates=[])
    with pytest.raises(DecisionMismatch, match="known kind"):
        script.do("upgrade")
    with pytest.raises(DecisionMismatch, match="other fields"):
        script.do("propose")


def test_scores_out_of_bounds_are_an_error_and_a_crash_is_the_worst(script):
    script.begin()
    names = (PRIMARY, *CURVE)
    tasks = script.tasks("confirm", 1)
    with pytest.raises(ValueError, match="expected returns from 0 to 100"):
        script.do("confirm", **tasks, old={n: [50.0] for n in names},
                  new={n: [100.5] for n in names})  # fmt: skip
    for old, new in ((None, 50.0), (50.0, None)):
        other = Script()
        other.begin()
        sides = {"old": {n: [old] for n in names}, "new": {n: [new] for n in names}}
        assert other.do("confirm", **tasks, **sides).confirmation.mean == -1


def test_a_budget_ends_what_runs(script):
    script = Script(max_env_steps=4000)
    lineage = script.begin()
    assert lineage.budget_left < 0
    assert script.confirm(1, count=10).outcome == Outcome.INCONCLUSIVE


def test_what_stays_on_disk():
    script = Script(keep_champions=2)
    for _ in range(4):
        script.accept()
        script.end()
    lineage = script.lineage
    assert lineage.kept_weights == {"zero", "g3-0", "g4-0"}
    script.propose()
    script.train()
    assert {"g5-0", "g5-3"} <= lineage.kept_weights
