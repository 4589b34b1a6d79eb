"""Row `time_to_475`: wall time until a policy balances, learning from nothing.

Place in the flow: a row of `performance`; its peers are `peers`.

The two sides do not learn the same thing. `MetaTrainer` learns a family of plants, half of them
with the actuator the wrong way, and is judged on 40 it never saw, after one step on 20 random
actions. The peers learn one plant, Gymnasium's default, and are judged on it. The time says what a
user waits, not which learns faster.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks.peers import TARGET, Algorithm, Solved, Stopwatch, learn
from benchmarks.results import Measurement
from benchmarks.settings import Settings
from benchmarks.timing import Series, Spread, alternate
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import Core, EvaluationConfig, MetaTrainingConfig
from ssm_metarl.evaluation.episodes import collect_support, run_arm
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.methods.meta_trained import MetaTrained

CHECK_EPOCHS, TASKS = 2, 40
PEERS: dict[str, Algorithm] = {"RecurrentPPO": "recurrent_ppo", "PPO": "ppo"}
CORES: tuple[Core, ...] = ("state_space", "diagonal")
"""The model of the demo, and the default."""


def time_to_475(settings: Settings) -> list[Measurement]:
    """Seconds of learning until 475, evaluations not counted, for several seeds in turns."""
    seeds, caps = settings.choose(
        (5, {"ours": 60.0, "RecurrentPPO": 60.0, "PPO": 30.0}),
        (1, {"ours": 15.0, "RecurrentPPO": 12.0, "PPO": 6.0}),
        (1, {"ours": 0.1, "RecurrentPPO": 0.1, "PPO": 0.1}),
    )
    warm_up()
    solved: dict[str, list[Solved]] = {name: [] for name in (*CORES, *PEERS)}

    def source(name: str) -> float:
        seed = len(solved[name])
        done = seed + list(solved).index(name) / len(solved)
        settings.progress(done / seeds, f"{name}, seed {seed}")
        core = next((core for core in CORES if core == name), None)
        if core is not None:
            training = settings.training or MetaTrainingConfig(seed=seed)
            outcome = meta_learn(replace(training, core=core), cap=caps["ours"])
        else:
            outcome = learn(PEERS[name], seed, cap=caps[name])
        solved[name].append(outcome)
        return outcome.seconds

    sources = {name: partial(source, name) for name in solved}
    series = alternate(sources, seeds)
    for core in CORES:
        if core in series.failures:
            raise RuntimeError(series.failures[core])
    return [
        row
        for core in CORES
        for peer in PEERS
        for row in (seconds_row(core, peer, solved, series), rate_row(core, peer, solved, series))
    ]


def seconds_row(
    core: str, peer: str, solved: dict[str, list[Solved]], series: Series
) -> Measurement:
    """How many times as soon as a peer; a bound where a side did not get there."""
    ours, theirs = solved[core], solved[peer]
    ours_reached = all(s.reached for s in ours)
    peer_reached = all(s.reached for s in theirs)
    notes = [
        f"{sum(s.reached for s in runs)} of {len(runs)} seeds of {name} reached it, "
        f"after {Spread.of([s.env_steps for s in runs]).median:,.0f} steps in the median"
        for name, runs in (("ours", ours), (peer, theirs))
        if runs
    ]
    if not peer_reached:
        notes.append(f"{peer}: > {max(s.seconds for s in theirs):.0f} s (cap)")
    if not ours_reached:
        notes.append(f"ours: > {max(s.seconds for s in ours):.0f} s (cap)")
    if peer in series.failures:
        notes = [series.failures[peer]]
    comparable = ours_reached and bool(theirs) and peer not in series.failures
    return Measurement(
        name=f"time_to_475/{core}/{PEERS[peer]}",
        case=f"{core}: a family's {TASKS} unseen plants to {TARGET:.0f}; peer: one plant",
        peer=peer,
        unit="s",
        ours=Spread.of([s.seconds for s in ours]).median if ours_reached else None,
        theirs=(Spread.of([s.seconds for s in theirs]).median if theirs and peer_reached else None),
        ratio=series.ratio(peer, core) if comparable else None,
        at_least=not peer_reached,
        note="; ".join(notes),
    )


def rate_row(core: str, peer: str, solved: dict[str, list[Solved]], series: Series) -> Measurement:
    """Environment steps a second in the same trainings."""
    failed = peer in series.failures
    rates = {name: [s.rate for s in runs] for name, runs in solved.items() if name in (core, peer)}
    steps = Series(rates)
    return Measurement(
        name=f"time_to_475/{core}/{PEERS[peer]}_rate",
        case=f"{core}: environment steps a second of these trainings",
        peer=peer,
        unit="steps/s",
        ours=steps.median(core),
        theirs=None if failed else steps.median(peer),
        ratio=None if failed else steps.ratio(core, peer),
        note=series.failures.get(peer, ""),
    )


def warm_up() -> None:
    """Compile kernels and load libraries: an epoch and some steps that nobody counts."""
    for core in CORES:
        MetaTrainer(MetaTrainingConfig(seed=99, core=core)).run_epoch()
    for algorithm in PEERS.values():
        try:
            learn(algorithm, 99, cap=0.0, check_every=1)
        except ModuleNotFoundError:
            return  # its rows will say so


def meta_learn(training: MetaTrainingConfig, *, cap: float) -> Solved:
    """Meta-train until the adapted mean return on held-out tasks is 475, or the cap.

    Args:
        training: The settings.
        cap: Seconds of training after which it stops.
    """
    trainer = MetaTrainer(training)
    clock = Stopwatch(cap)
    clock.start()
    while not clock.reached and clock.seconds() < cap and trainer.progress < 1:
        trainer.run_epoch()
        if trainer.epoch % CHECK_EPOCHS == 0:
            with clock.paused():
                clock.reached = adapted_return(trainer) >= TARGET
    return Solved(clock.seconds(), clock.reached, trainer.env_steps)


def adapted_return(trainer: MetaTrainer) -> float:
    """Mean return on held-out ID tasks after one inner step on 20 random actions."""
    config = EvaluationConfig(num_tasks=TASKS, episodes_per_task=1, seed=1)
    policy, family = trainer.policy, trainer.family
    tasks = family.sample("id", TASKS, seed=config.seed)
    support = collect_support(policy, tasks, config.support_steps, "random", seed=config.seed)
    adaptation = MetaTrained().adaptation()
    adapted, _ = StandardAdapter(adaptation).adapt_tasks(policy, support)
    return float(run_arm(tasks, policy.actor(adapted, TASKS, 1), config).mean())
