"""Cards of the shipped models, in Markdown: what `ship_models` writes beside the weights.

Every figure comes from the checkpoint or from what the public commands printed.
"""

from typing import Any

from ssm_metarl.checkpoint import Checkpoint
from ssm_metarl.tasks.registry import named_family
from ssm_metarl.tasks.task_family import Choice, Uniform

SPLITS = {"id": "in distribution", "ood": "out of distribution"}
WHAT = {
    "cartpole": "The default `DiagonalSSM`, meta-trained by MAML to adapt from reward-free data.",
    "cartpole_hybrid_real_model": "The documented `StateSpaceModel`, meta-trained with hybrid "
    "adaptation: each inner step also replays experience of other tasks, weighed by how well it "
    "fits.",
}
FILE = {
    "cartpole": "`cartpole.safetensors`: weights, learned step sizes, limits of adaptation, replay "
    "experience, and this training's settings as JSON in its header.",
    "cartpole_hybrid_real_model": "`cartpole_hybrid_real_model.pth`: the documented weights alone, "
    "loadable by anyone; what makes a policy of them (learned step sizes, clipped observations, "
    "symmetry, limits of adaptation, replay experience) is in the `.safetensors` beside it.",
}


def card(
    name: str, checkpoint: Checkpoint, results: list[dict[str, Any]], last: dict[str, Any]
) -> str:
    """A model's card: of its checkpoint, what every case printed, and its log's last line."""
    write = in_context_card if checkpoint.policy().in_context else gradient_card
    return write(name, checkpoint, results, last)


def made_by(checkpoint: Checkpoint, last: dict[str, Any]) -> str:
    """Seed, versions, size and command of the training."""
    versions = ", ".join(f"{k} {v}" for k, v in sorted(checkpoint.versions.items()))
    return f"""Made by (seed {checkpoint.training["seed"]}; {versions}), the last checkpoint, after
{last["env_steps"]:,} environment steps in {last["epoch"]:,} epochs:

```
{checkpoint.card["command"]}
```"""


def settings_table(checkpoint: Checkpoint) -> str:
    """The training's settings, a row each."""
    rows = "\n".join(f"| `{k}` | {v} |" for k, v in sorted(checkpoint.training.items()))
    return f"| setting | value |\n|---|---|\n{rows}"


def in_context_card(
    name: str, checkpoint: Checkpoint, results: list[dict[str, Any]], last: dict[str, Any]
) -> str:
    """The card of a policy that adapts by remembering."""
    policy, verification = checkpoint.policy(), checkpoint.card["verification"]
    family = named_family(checkpoint.training["family"])
    ranges = "\n".join(
        f"| `{p.name}` | {p.unit} | {span(p.id)} | {span(p.ood)} | {p.meaning} |"
        for p in family.parameters
    )
    return f"""# {name}

A `{type(policy.core).__name__}` of {policy.num_parameters():,} parameters that adapts by
remembering (RL²): its hidden state runs through all episodes of a trial, and no weight changes.
`{name}.safetensors`: weights, and this training's settings as JSON in its header.

{made_by(checkpoint, last)}

## Use

```python
from ssm_metarl import load_pretrained

policy = load_pretrained("{name}")
state = policy.initial_state(num_tasks=1, num_envs=1)
params = policy.meta_params()
# obs (1, 1, {policy.obs_dim}); reset (1, 1), bool: a new episode; reward (1, 1): the last one
action, log_prob, state = policy.step(params, state, obs, reset, reward=reward)
```

**Intended**: study of adaptation in context; a starting point for plants like those of the family
`{family.name}`, observed as {", ".join(f"`{n}`" for n in family.obs_names)}, with a decision every
{family.time_step:g} s. **Not intended**: any plant that may hurt somebody or something; trials much
longer than the ten episodes that it was evaluated on.

## Data

No data set: {last["env_steps"]:,} steps in simulated plants, drawn anew for every trial from the
in-distribution ranges:

| parameter | unit | trained on (ID) | OOD | meaning |
|---|---|---|---|---|
{ranges}

## Results

200 tasks that training never drew, one greedy trial of ten episodes each; seed 20000, on which
nothing was chosen. Intervals: 95 % bootstrap of the IQM over tasks, of this one policy. What each
arm is, `ssm-metarl evaluate --json` says under `definitions`.

{results_table(results)}

{episodes_table(results)}

Ten seeded episodes (`ssm-metarl verify --model {name}`): mean {verification["mean"]:.1f} ±
{verification["std"]:.1f}, minimum {verification["min"]:g}, maximum
{verification["max"]:g}; with its memory cleared every episode {verification["frozen_mean"]:.1f}.

## Limits and bias

- It is biased towards the ranges that it was trained in; the table says what is lost outside.
- It sees the reward of its last action. Where nobody tells it one, it acts as after a reward of 0.
- Sensor noise and dead times were not in the training. A plant that changes inside a trial needs a
  restart of the memory (`ssm-metarl evaluate --drift`).

## Hyperparameters

{settings_table(checkpoint)}
"""


def span(values: Uniform | Choice) -> str:
    """A range in words."""
    if isinstance(values, Choice):
        return " or ".join(f"{v:g}" for v in values.values)
    return " or ".join(f"{low:g} to {high:g}" for low, high in values.intervals)


def episodes_table(results: list[dict[str, Any]]) -> str:
    """Means of the trial's first, second, third and last episode."""
    shown = (0, 1, 2, 9)
    lines = ["| mean of episode | " + " | ".join(str(i + 1) for i in shown) + " |",
             "|---|" + "--:|" * len(shown)]  # fmt: skip
    for row in results:
        evaluation = row["evaluation"]
        by_episode = evaluation["arms"]["in_context"]["by_episode"]
        cells = " | ".join(f"{by_episode[i]['mean']:.1f}" for i in shown)
        lines.append(f"| {SPLITS[evaluation['split']]} | {cells} |")
    return "\n".join(lines)


def gradient_card(
    name: str, checkpoint: Checkpoint, results: list[dict[str, Any]], last: dict[str, Any]
) -> str:
    """The card of a CartPole policy that adapts by a gradient step."""
    policy = checkpoint.policy()
    verification = checkpoint.card["verification"]
    limits = checkpoint.calibration
    safety = {
        row["evaluation"]["split"]: row["evaluation"]["safety"]
        for row in results
        if "safety" in row["evaluation"]
    }
    return f"""# {name}

{WHAT[name]} {policy.num_parameters():,} parameters (`{type(policy.core).__name__}`).
{FILE[name]}

{made_by(checkpoint, last)}

## Use

```python
from ssm_metarl import StandardAdapter, load_pretrained

policy = load_pretrained("{name}")
adapted = StandardAdapter().adapt(policy, support)  # a Rollout of some 20 steps, no reward
```

**Intended**: study of adaptation; a starting point for plants that look like CartPole: four
observations (position in m, velocity in m/s, angle in rad, angular velocity in rad/s, upright at
zero), two actions, a decision every 0.02 s. **Not intended**: any plant on which a fall hurts
somebody or something; a changed goal (prediction carries no reward, so only a changed *plant* can
be found out); more than the few seconds of an episode that it was evaluated on.

## Data and procedure

No data set: {last["env_steps"]:,} steps (the limits' calibration not counted) in simulated
CartPoles whose force, pole, gravity and actuator sign were drawn anew for every task from the
in-distribution ranges of the `cartpole` family. Each epoch: support data of a random length, up to
{checkpoint.training["adaptation_steps"]} inner gradient steps on the prediction loss, query
episodes of the adapted policies (pushed, and half of them started far from upright), second-order
outer steps. Then the limits of adaptation were set on training tasks
(`ssm_metarl/evaluation/calibration.py`): {limits_text(limits)}.

## Results

200 tasks that training never drew, four greedy episodes of at most 500 steps each; seed 20000, on
which nothing was chosen. Intervals: 95 % bootstrap of the IQM over tasks, of this one policy.

{results_table(results)}

Ten seeded episodes (`ssm-metarl verify --model {name}`): mean {verification["mean"]:.1f} ±
{verification["std"]:.1f}, minimum {verification["min"]:g}, maximum {verification["max"]:g}; without
adapting {verification["frozen_mean"]:.1f}.

Gradient steps on the same 20 steps of support data (mean, worst tenth; in brackets without
rollback):

{steps_table(safety)}

{safety_text(safety)}

## Limits and bias

- The family hides **one bit**, the actuator's direction; a fixed linear controller that reads it
  off the same data (`sign_probe`) does as well. What is shown is that a gradient step can read it
  and re-tune a network by it.
- It is biased towards the ranges it was trained in. Out of them it fails most on weak actuators
  beside high gravity, and on very short poles.
- The unadapted policy is not meant to be used: mean {frozen(results, "+1"):.0f} of 500 where
  action 1 pushes to the right, {frozen(results, "-1"):.0f} where it pushes to the left.
- Support data that lie are mostly refused (above), not always. Sensor noise and delays were not in
  the training.

## Monitoring

`needs_adaptation(policy, transitions)` compares the prediction error of the last
{limits["window"]} transitions with its limit; call it once a second or so, and collect new support
data when its verdict is True. Watch `.report`: a step that was undone says why.

## Hyperparameters

{settings_table(checkpoint)}
"""


def limits_text(limits: dict[str, Any]) -> str:
    """The calibration's numbers in words."""
    losses = ", ".join(
        f"{loss:.2f} (from {steps} steps on)"
        for steps, loss in zip(limits["support_steps"], limits["max_loss"], strict=True)
    )
    return (
        f"a step is kept where the inner loss falls, to at most {losses}, and "
        f"KL(adapted || meta) stays under {limits['max_kl']:.2f} nats; a prediction error over "
        f"{limits['max_prediction_error']:.3f} means that the plant has changed"
    )


def results_table(results: list[dict[str, Any]]) -> str:
    """Every case and arm as a row."""
    lines = ["| case | arm | mean | IQM | interval | worst tenth |", "|---|---|--:|--:|--:|--:|"]
    for row in results:
        evaluation = row["evaluation"]
        for arm, s in evaluation["arms"].items():
            if arm == "random" and row["case"] != results[0]["case"]:
                continue
            low, high = s["ci95"]
            lines.append(
                f"| {SPLITS[evaluation['split']]}, {row['case']} | {arm} | {s['mean']:.1f} | "
                f"{s['iqm']:.1f} | {low:.1f} to {high:.1f} | {s['worst10']:.1f} |"
            )
    return "\n".join(lines)


def steps_table(safety: dict[str, Any]) -> str:
    """Returns after more and more gradient steps."""
    counts = [row["num_adapt_steps"] for row in safety["id"]["more_steps"]]
    lines = ["| | " + " | ".join(map(str, counts)) + " |", "|---|" + "--:|" * len(counts)]
    for split, title in SPLITS.items():
        cells = [
            f"{r['mean']:.1f}, {r['worst10']:.1f} ({r['without_rollback']['mean']:.1f}, "
            f"{r['without_rollback']['worst10']:.1f})"
            for r in safety[split]["more_steps"]
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
        undone = [f"{r['rolled_back']:.0%}" for r in safety[split]["more_steps"]]
        lines.append("| rolled back on | " + " | ".join(undone) + " |")
    return "\n".join(lines)


def safety_text(safety: dict[str, Any]) -> str:
    """Falls, lying data and the change detector, on either split."""
    lines = []
    for split, title in SPLITS.items():
        s = safety[split]
        lied, detector = s["shuffled_actions"], s["change_detector"]
        lines.append(
            f"- {title}: the return falls after a kept step on "
            f"{s['falls_after_a_kept_step']:.1%} of the tasks. With shuffled actions the step is "
            f"undone on {lied['rolled_back']:.1%}, and harmless on {lied['harmless']:.1%}. Change "
            f"detector: false alarms {detector['false_alarms']:.1%}, flipped actuators found "
            f"{detector['flips_found']:.1%}."
        )
    return "\n".join(lines)


def frozen(results: list[dict[str, Any]], sign: str) -> float:
    """Mean return of the unadapted policy for one direction of the actuator."""
    return float(results[0]["evaluation"]["by_sign"][sign]["frozen"]["mean"])
