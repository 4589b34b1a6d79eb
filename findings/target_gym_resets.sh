#!/usr/bin/env bash
# target-gym 0.6.1 through its Gymnasium wrapper: a reset without a seed begins the same episode again.
#
# One would guess that `env.reset()` draws a new start and a new target, and only `env.reset(seed=...)`
#   repeats one, as Gymnasium's interface says and Pendulum-v1 does; so that whoever seeds once, as all
#   training loops and vector environments do, meets the whole distribution that the parameters declare.
# What happens
#   - The wrapper keeps a JAX key, which a seed replaces and nothing ever splits. Every later reset is
#     that of the last seed; without any seed it is that of seed 0, in every environment object.
#   - Vector environments reset without a seed when an episode is over. Four CSTRs in a SyncVectorEnv
#     play four starts with four targets, however long they are trained on; four that nobody seeded play
#     one.
#   - A longer training, another agent and `action_space.seed` change nothing about it. The environment
#     itself is no cause: with split keys, `reset_env` of the JAX class draws a new start each time.
# Where: target_gym/wrapper.py (reset, step): self.key is set in __init__ and by a seed alone.
# For whoever trains or compares on it: pass a new seed to every reset, in a wrapper if need be. An
#   evaluation "over 100 episodes" that seeds once has evaluated one.
#
# Seen 2026-11-29, Python 3.11, Linux x86-64:
#   target-gym 0.6.1 | gymnasium 1.3.0 | jax 0.10.2
#   Pendulum-v1: ten resets, the first of them seeded: 10 starts; each seeded: 10 starts
#   CSTR: ten resets, the first of them seeded: 1 starts; each seeded: 10 starts
#   CSTR: three objects that nobody seeded: 1 start
#   four CSTRs in a vector, seed 0, at least 5 episodes each: 4 starts
#   four CSTRs in a vector, seed None, at least 5 episodes each: 1 starts
#   the JAX class with ten keys: 10 starts
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    target-gym==0.6.1 gymnasium==1.3.0 gymnax==1.0.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 six==1.17.0
cat >"$dir/show.py" <<'PY'
from importlib.metadata import version

import gymnasium
import jax
import numpy as np
from gymnasium.vector import SyncVectorEnv
from target_gym import CSTR, gym_wrapper_factory

EPISODES = 5
Reactor = gym_wrapper_factory(CSTR)


def starts(env, seeds):
    """How many different first observations so many resets give."""
    return len({tuple(np.float64(env.reset(seed=seed)[0])) for seed in seeds})


def in_vector(seed):
    """Different starts that four environments play, until each has ended some episodes."""
    envs = SyncVectorEnv([Reactor] * 4)
    first, _ = envs.reset(seed=seed)
    met, over, ended = {tuple(row) for row in first}, np.zeros(4, bool), np.zeros(4, int)
    while ended.min() < EPISODES:
        obs, _, terminated, truncated, _ = envs.step(np.zeros((4, 1), np.float32))
        met |= {tuple(row) for row in obs[over]}  # what follows an end is a reset
        over = terminated | truncated
        ended += over
    return len(met)


print("target-gym", version("target-gym"), "| gymnasium", gymnasium.__version__, "| jax", jax.__version__)
for name, env in (("Pendulum-v1", gymnasium.make("Pendulum-v1")), ("CSTR", Reactor())):
    once, each = starts(env, [7] + [None] * 9), starts(env, range(10))
    print(f"{name}: ten resets, the first of them seeded: {once} starts; each seeded: {each} starts")
    assert each == 10 and once == (10 if name == "Pendulum-v1" else 1)
never = {tuple(Reactor().reset()[0].tolist()) for _ in range(3)}
print(f"CSTR: three objects that nobody seeded: {len(never)} start")
assert len(never) == 1
for seed, expected in ((0, 4), (None, 1)):
    met = in_vector(seed)
    print(f"four CSTRs in a vector, seed {seed}, at least {EPISODES} episodes each: {met} starts")
    assert met == expected
keys = jax.random.split(jax.random.PRNGKey(0), 10)
reactor = CSTR()
drawn = {tuple(np.array(reactor.reset_env(key, reactor.default_params)[0]).tolist()) for key in keys}
print(f"the JAX class with ten keys: {len(drawn)} starts")
assert len(drawn) == 10
PY
"$dir/venv/bin/python" -I -W ignore "$dir/show.py"
