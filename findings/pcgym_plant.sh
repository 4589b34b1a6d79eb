#!/usr/bin/env bash
# pc-gym 0.1.8: the model that an environment shows is not the one that is stepped, a new set point is
# paid for one step before it is shown, and actions beyond their bounds are taken.
#
# One would guess
#   - that `env.model.UA = 1e4` (the reactor's cooling) gives another plant, at the latest after a reset;
#   - that the reward of a step belongs to the set point that the agent saw when it acted, or that comes
#     with the observation;
#   - that a normalised action of 5, where the space ends at 1, is clipped or refused;
#   - that an episode which ends because its N steps are over is truncated, and that `reset(seed=...)`
#     repeats its noise.
# What happens
#   - Every reset makes a second environment out of `env_params`, with a model of its own, and steps that
#     one. `env.model` is read for names alone: a change of any of its parameters changes no number.
#     With a `custom_model` the same change works, from the next reset on.
#   - The observation after step t shows the set point of t, its reward is for that of t + 1. When the set
#     point steps, the agent is paid for the new one by an observation that still shows the old one; the
#     two agree from the next step on. (What reset shows is what stands in x0.)
#   - The action is mapped beyond the bounds: 5 cools with 316 K where 302 K is the most, and the reactor
#     runs away.
#   - N = 20 gives 19 steps, the last of them terminated: a value function is not to bootstrap there.
#     Noise is drawn from NumPy's global generator, which the seed does not touch.
# Where: pcgym/pcgym.py (reset, step, reward_fn), pcgym/integrator.py (integration_engine).
# For whoever randomises plants on it: vary `custom_model`, and check that something moves. For whoever
#   learns on it: clip, treat its terminations as cuts, seed np.random, and expect one step of penalty at
#   each change of the set point that no observation explains.
#
# Seen 2026-11-29, Python 3.11, Linux x86-64:
#   pcgym 0.1.8 | gymnasium 1.4.0 | numpy 2.4.6
#   model: UA of a fifth changes temperatures by 0.00 K at most
#   custom_model: UA of a fifth changes temperatures by 170.88 K at most
#   step 9: shown 0.85, paid for 0.85
#   step 10: shown 0.85, paid for 0.90
#   step 11: shown 0.90, paid for 0.90
#   after an action of 1: 328.8 K, of 5: 431.3 K
#   N = 20: 19 steps, then terminated True
#   noise of two episodes of one seed differs by 14.9 K (another number each time)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    pcgym==0.1.8 gymnasium==1.4.0 numpy==2.4.6 casadi==3.8.2
cat >"$dir/show.py" <<'PY'
from importlib.metadata import version

import gymnasium
import numpy as np
from pcgym import make_env
from pcgym.model_classes import cstr

gymnasium.logger.min_level = gymnasium.logger.ERROR
STEPS, CHANGE = 20, 10  # the set point changes half-way
SET_POINT = [0.85] * CHANGE + [0.9] * (STEPS - CHANGE)


def reactor(**more):
    return make_env({
        "model": "cstr", "N": STEPS, "tsim": 20, "SP": {"Ca": SET_POINT},
        "x0": np.array([0.8, 330.0, 0.85]), "r_scale": {"Ca": 1.0},
        "o_space": {"low": np.array([0.7, 300, 0.8]), "high": np.array([1, 350, 0.9])},
        "a_space": {"low": np.array([295]), "high": np.array([302])},
        "normalise_a": True, "normalise_o": False, **more,
    })


def episode(env, seed=0):
    """Observations after each step of an episode in the middle of the action's range, and rewards."""
    env.reset(seed=seed)
    seen, rewards, over = [], [], False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(np.zeros(1))
        seen.append(obs.copy())
        rewards.append(float(reward))
        over = terminated or truncated
    return np.array(seen), np.array(rewards), terminated


print("pcgym", version("pcgym"), "| gymnasium", gymnasium.__version__, "| numpy", np.__version__)
usual, rewards, terminated = episode(reactor())
for what, more in (("model", {}), ("custom_model", {"custom_model": cstr(int_method="casadi")})):
    env = reactor(**more)
    env.model.UA = 1e4  # a fifth
    off = np.abs(episode(env)[0] - usual).max(axis=0)
    print(f"{what}: UA of a fifth changes temperatures by {off[1]:.2f} K at most")
    assert off.any() == (what == "custom_model")

concentration, shown = usual[:, 0], usual[:, 2]
paid_for = np.where(np.isclose(rewards, -((concentration - 0.85) ** 2)), 0.85, 0.9)
for step in (CHANGE - 1, CHANGE, CHANGE + 1):
    print(f"step {step}: shown {shown[step - 1]:.2f}, paid for {paid_for[step - 1]:.2f}")
differ = np.flatnonzero(shown != paid_for) + 1
assert list(differ) == [CHANGE] and shown[CHANGE - 1] == 0.85

hottest = []
for action in (1.0, 5.0):
    env = reactor()
    env.reset()
    hottest.append(env.step(np.array([action]))[0][1])
print(f"after an action of 1: {hottest[0]:.1f} K, of 5: {hottest[1]:.1f} K")
assert hottest[1] > hottest[0] + 50

print(f"N = {STEPS}: {len(rewards)} steps, then terminated {terminated}")
assert len(rewards) == STEPS - 1 and terminated
env = reactor(noise=True, noise_percentage=0.01)
one, other = (episode(env, seed=3)[0] for _ in range(2))
print(f"noise of two episodes of one seed differs by {np.abs(one - other)[:, 1].max():.1f} K")
assert not np.allclose(one, other)
PY
"$dir/venv/bin/python" -I -W ignore "$dir/show.py"
