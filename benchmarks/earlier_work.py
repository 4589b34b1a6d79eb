"""One piece of work, timed in a process of its own: what `earlier` runs in two trees in turns.

Place in the flow: started by path, the tree to measure first on Python's path; prints a JSON object
of seconds per unit of work, the less the better. It uses only names that earlier versions have.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

SECONDS = 2.0
TRAININGS = {
    "meta_training_diagonal": ["--max_env_steps", "400000"],
    "meta_training_state_space": ["--core", "state_space", "--max_env_steps", "300000"],
    "in_context_training": ["--mode", "in_context", "--max_env_steps", "400000"],
}
TASKS, ENVS, STEPS = 64, 8, 20


def training(flags: list[str]) -> float:
    """Seconds an environment step of a training, after its first two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "ssm_metarl.cli", "train", "--family", "cartpole"]
        subprocess.run([*command, *flags, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        lines = (out / "training_log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    steps = log[-1]["env_steps"] - log[1]["env_steps"]
    return float(sum(epoch["seconds"] for epoch in log[2:]) / steps)


def median_seconds(call: Callable[[], object]) -> float:
    """Median time of a call, after a first one that compiles."""
    call()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def calls() -> dict[str, float]:
    """Seconds of acting and of adapting, one plant and many."""
    import torch

    from ssm_metarl import Rollout, StandardAdaptationConfig, StandardAdapter, load_pretrained
    from ssm_metarl.adaptation.adapter import adapt_to_tasks

    torch.manual_seed(0)
    policy = load_pretrained("cartpole")
    params, found = policy.meta_params(), {}
    for tasks, envs in ((1, 1), (TASKS, ENVS)):
        actor = policy.actor(params, tasks, envs)
        obs, reset = torch.randn(tasks, envs, 4) * 0.05, torch.zeros(tasks, envs, dtype=torch.bool)
        found[f"acting_{tasks}x{envs}"] = median_seconds(partial(actor, obs, reset))
    for tasks in (1, TASKS):
        shape = (STEPS, tasks, 1)
        no, path = torch.zeros(shape, dtype=torch.bool), torch.randn(STEPS + 1, tasks, 1, 4) * 0.05
        reset = no.clone()
        reset[0] = True
        rollout = Rollout(
            obs=path[:-1], action=torch.randint(2, shape), reward=torch.ones(shape),
            next_obs=path[1:], terminated=no, truncated=no, reset=reset, mask=~no,
            log_prob=torch.full(shape, -0.7),
        )  # fmt: skip
        if tasks == 1:
            call: Callable[[], object] = partial(StandardAdapter().adapt, policy, rollout)
        else:
            call = partial(adapt_to_tasks, policy, rollout, StandardAdaptationConfig())
        found[f"adapting_{tasks}"] = median_seconds(call)
    return found


def main() -> None:
    """Time the work named on the command line."""
    work = sys.argv[1]
    found = calls() if work == "calls" else {work: training(TRAININGS[work])}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
