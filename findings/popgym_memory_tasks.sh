#!/usr/bin/env bash
# POPGym 1.0.7: VelocityOnlyCartPole begins with positions, RepeatPrevious looks back one step less than
# k, and a fall costs nothing in either CartPole.
#
# One would guess
#   - that VelocityOnlyCartPole never shows a position, so that where the cart stands and how the pole
#     leans must be found out from velocities alone;
#   - that RepeatPrevious with k = 4 asks for the card of four steps ago, and k = 1 for the one before
#     (its docstring says so, but that k = 16 is fifteen steps ago, too);
#   - that a CartPole episode which ends in a fall ends with the reward of -1 that `reward_transform`
#     has for it, and returns lie between -1 and 1.
# What happens
#   - `reset` of VelocityOnlyCartPole returns the cart's position and the pole's angle, in the places
#     where every later step has the two velocities. Added up from there, the velocities give both
#     positions to one thousandth (metres and radians) until the episode ends.
#   - k counts the card in view: k = 4 asks for the card of three steps ago, and with k = 1 an agent
#     without memory, which repeats what it sees, has the full return.
#   - the -1 stands for a reward of 0, which Gymnasium's CartPole gives only to steps taken after the
#     end. A fall is paid like any other step.
# Where: popgym/envs/velocity_only_cartpole.py (reset), repeat_previous.py (step),
#   position_only_cartpole.py and velocity_only_cartpole.py (reward_transform).
# For whoever compares memories on POPGym: the cart's position is in no later observation, and nothing
#   that is observed depends on it, so VelocityOnlyCartPole asks whether a state keeps its very first
#   input, one of another kind than all others. Memory lengths read off RepeatPrevious are one too
#   long. CartPole's returns are the share of steps survived, never below 0.
#
# Seen 2026-11-29, Python 3.11, Linux x86-64:
#   popgym 1.0.7 | gymnasium 1.4.0
#   state: positions +0.0137 -0.0459, velocities -0.0230 -0.0483
#   reset shows      +0.0137 -0.0459
#   positions from summed velocities: off by 0.0010 at most, over 100 episodes
#   RepeatPrevious(k=1): return by the card answered, from in view to 1 steps ago: +1.00 -0.53
#   RepeatPrevious(k=4): return by the card answered, from in view to 4 steps ago: -0.67 -0.50 -0.54 +1.00 -0.54
#   PositionOnlyCartPole: 100 falls, rewards [0.005], worst return +0.040
#   VelocityOnlyCartPole: 100 falls, rewards [0.005], worst return +0.040
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    popgym==1.0.7 gymnasium==1.4.0 numpy==2.4.6
cat >"$dir/show.py" <<'PY'
from importlib.metadata import version

import numpy as np
from popgym.envs.position_only_cartpole import PositionOnlyCartPole
from popgym.envs.repeat_previous import RepeatPrevious
from popgym.envs.velocity_only_cartpole import VelocityOnlyCartPole

print("popgym", version("popgym"), "| gymnasium", version("gymnasium"))

env = VelocityOnlyCartPole()
first, _ = env.reset(seed=0)
x, x_velocity, angle, angle_velocity = np.float32(env.state)
print(f"state: positions {x:+.4f} {angle:+.4f}, velocities {x_velocity:+.4f} {angle_velocity:+.4f}")
print(f"reset shows      {first[0]:+.4f} {first[1]:+.4f}")
assert np.array_equal(first, [x, angle])
second, *_ = env.step(0)
assert np.array_equal(second, np.float32(env.state)[[1, 3]])

off = 0.0
for seed in range(100):
    obs, _ = env.reset(seed=seed)
    positions, over = obs.astype(float), False  # the first observation is where to start from
    pushes = np.random.default_rng(seed)
    while not over:
        obs, _, terminated, truncated, _ = env.step(int(pushes.integers(2)))
        over = terminated or truncated
        off = max(off, np.abs(positions - np.array(env.state)[[0, 2]]).max())
        positions += env.tau * obs
print(f"positions from summed velocities: off by {off:.4f} at most, over 100 episodes")
assert off < 0.0011

for k in (1, 4):
    env = RepeatPrevious(k=k)
    returns = []
    for steps_ago in range(k + 1):
        obs, _ = env.reset(seed=0)
        shown, total, over = [obs], 0.0, False
        while not over:
            answer = shown[-1 - steps_ago] if len(shown) > steps_ago else 0
            obs, reward, over, _, _ = env.step(answer)
            shown.append(obs)
            total += reward
        returns.append(total)
    print(f"RepeatPrevious(k={k}): return by the card answered, from in view to {k} steps ago:",
          " ".join(f"{value:+.2f}" for value in returns))
    assert np.isclose(returns[k - 1], 1) and max(np.delete(returns, k - 1)) < 0

for make in (PositionOnlyCartPole, VelocityOnlyCartPole):
    env, rewards, falls, returns = make(), set(), 0, []
    for seed in range(100):
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, fell, truncated, _ = env.step(0)  # always to the left: it falls
            rewards.add(reward)
            total += reward
            over = fell or truncated
        falls += fell
        returns.append(total)
    print(f"{make.__name__}: {falls} falls, rewards {sorted(rewards)}, worst return {min(returns):+.3f}")
    assert falls == 100 and rewards == {1 / 200} and min(returns) > 0
PY
"$dir/venv/bin/python" -I -W ignore "$dir/show.py"
