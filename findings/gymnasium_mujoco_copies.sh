#!/usr/bin/env bash
# Gymnasium 1.4.0 with MuJoCo 4.0.0: a copy of an environment is a new environment of the default plant,
# and the same positions and velocities give another observation.
#
# One would guess
#   - that `copy.deepcopy(env)` and a pickled environment are the environment: its masses, its state.
#     For Pendulum-v1 and CartPole-v1 they are;
#   - that a vector environment over `lambda: env` steps that environment, however its workers start;
#   - that `set_state(qpos, qvel)` with the numbers of the running episode gives its observation.
# What happens
#   - The MuJoCo environments are copied by calling their constructor again. Masses set in the model and
#     the state are lost without a word.
#   - In an AsyncVectorEnv whose workers are forked the changed masses survive, under "spawn" and
#     "forkserver" they do not. Which of them is the default depends on the platform and, on Linux, on
#     the Python: "fork" up to 3.13, "forkserver" from 3.14 on.
#   - After a step, what is observed of bodies (Humanoid's inertias and velocities, where Reacher's and
#     Pusher's fingertips are) belongs to the positions at which the integrator last evaluated forces:
#     with Euler (Pusher) those before the last substep, with Runge-Kutta (Humanoid, Reacher) a trial
#     point. After `set_state`, and so after `reset`, it belongs to the present positions, and forces of
#     contacts and motors are zero or another action's. Of Humanoid-v5's 348 numbers more than half
#     differ, of Hopper-v5's none.
#   - MuJoCo's own state (mjSTATE_INTEGRATION), copied into a second environment, continues bit for bit.
# Where: gymnasium/utils/ezpickle.py (__setstate__), gymnasium/envs/mujoco/mujoco_env.py (set_state,
#   _step_mujoco_simulation).
# For whoever randomises plants or plans by branching: set the masses inside the function that a worker
#   calls; branch with mj_getState and mj_setState; do not take an observation recomputed from logged
#   qpos and qvel for the one that the agent saw.
#
# Seen 2026-11-29, Python 3.11, Linux x86-64:
#   gymnasium 1.4.0 | mujoco 4.0.0
#   deepcopy: Pendulum mass 2.0 -> 2.0; Hopper torso 7.33 -> 3.67 kg, time 0.16 -> 0.00 s
#   pickle: Pendulum mass 2.0 -> 2.0; Hopper torso 7.33 -> 3.67 kg, time 0.16 -> 0.00 s
#   worker by fork: Pendulum mass 2.0, Hopper torso 7.33 of 7.33 kg
#   worker by spawn: Pendulum mass 2.0, Hopper torso 3.67 of 7.33 kg
#   worker by forkserver: Pendulum mass 2.0, Hopper torso 3.67 of 7.33 kg
#   Hopper-v5: of 11 observed numbers 0 differ after set_state, by 0.0e+00 at most
#   Reacher-v5: of 10 observed numbers 2 differ after set_state, by 2.0e-06 at most
#   Pusher-v5: of 23 observed numbers 3 differ after set_state, by 3.9e-03 at most
#   Humanoid-v5: of 348 observed numbers 218 differ after set_state, by 6.0e+02 at most
#     qpos: 0 of 22, largest 2.7 -> 2.7
#     qvel: 0 of 23, largest 5.735 -> 5.735
#     cinert: 117 of 130, largest 8.907 -> 8.907
#     cvel: 78 of 78, largest 9.67 -> 9.669
#     qfrc_actuator: 17 of 17, largest 106 -> 0
#     cfrc_ext: 6 of 78, largest 604.4 -> 0
#   mj_setState: the next 100 observations are equal, bit for bit
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    gymnasium==1.4.0 mujoco==4.0.0 mujoco-core==4.0.0 numpy==2.4.6 imageio==2.37.0 packaging==26.3
cat >"$dir/show.py" <<'PY'
import copy
import pickle

import gymnasium
import mujoco
import numpy as np
from gymnasium.vector import AsyncVectorEnv

gymnasium.logger.min_level = gymnasium.logger.ERROR
STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def heavy_pendulum():
    env = gymnasium.make("Pendulum-v1")
    env.unwrapped.m *= 2
    return env


def heavy_hopper():
    env = gymnasium.make("Hopper-v5")
    env.unwrapped.model.body_mass[1] *= 2
    return env


def played(env, steps, seed=0):
    """The observation after so many random actions."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(steps):
        obs, *_ = env.step(env.action_space.sample())
    return obs


def copies():
    for how, copied in (("deepcopy", copy.deepcopy),
                        ("pickle", lambda env: pickle.loads(pickle.dumps(env)))):
        pendulum, hopper = heavy_pendulum(), heavy_hopper()
        played(pendulum, 20), played(hopper, 20)
        twin, double = copied(pendulum).unwrapped, copied(hopper).unwrapped
        hopper = hopper.unwrapped
        print(f"{how}: Pendulum mass {pendulum.unwrapped.m} -> {twin.m}; Hopper torso "
              f"{hopper.model.body_mass[1]:.2f} -> {double.model.body_mass[1]:.2f} kg, "
              f"time {hopper.data.time:.2f} -> {double.data.time:.2f} s")
        assert twin.m == 2 and np.array_equal(twin.state, pendulum.unwrapped.state)
        assert np.isclose(double.model.body_mass[1], hopper.model.body_mass[1] / 2)
        assert double.data.time == 0 and np.array_equal(double.data.qpos, double.init_qpos)


def workers():
    for context, kept in (("fork", True), ("spawn", False), ("forkserver", False)):
        pendulum, hopper = heavy_pendulum(), heavy_hopper()
        mass = hopper.unwrapped.model.body_mass[1]
        envs = AsyncVectorEnv([lambda env=pendulum: env], context=context)
        (in_worker,) = envs.get_attr("m")
        envs.close()
        envs = AsyncVectorEnv([lambda env=hopper: env], context=context)
        (model,) = envs.get_attr("model")
        envs.close()
        print(f"worker by {context}: Pendulum mass {in_worker}, "
              f"Hopper torso {model.body_mass[1]:.2f} of {mass:.2f} kg")
        assert in_worker == 2 and np.isclose(model.body_mass[1], mass if kept else mass / 2)


def observations():
    for name in ("Hopper-v5", "Reacher-v5", "Pusher-v5", "Humanoid-v5"):
        env, other = (gymnasium.make(name).unwrapped for _ in range(2))
        seen = played(env, 30)
        other.reset(seed=0)
        other.set_state(env.data.qpos.copy(), env.data.qvel.copy())
        again = other._get_obs()
        different = np.flatnonzero(seen != again)
        print(f"{name}: of {seen.size} observed numbers {different.size} differ after set_state, "
              f"by {np.abs(seen - again).max():.1e} at most")
        assert (different.size == 0) == (name == "Hopper-v5")
        if name == "Reacher-v5":
            assert list(different) == [8, 9]  # fingertip to target
        if name == "Pusher-v5":
            assert list(different) == [14, 15, 16]  # fingertip
            assert np.abs(seen - again).max() > 1e-4
        if name == "Humanoid-v5":
            start = 0
            for part in ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"):
                stop = start + env.observation_structure[part]
                count = np.count_nonzero((start <= different) & (different < stop))
                print(f"  {part}: {count} of {stop - start}, "
                      f"largest {np.abs(seen[start:stop]).max():.4g} -> "
                      f"{np.abs(again[start:stop]).max():.4g}")
                assert (count == 0) == (part in ("qpos", "qvel"))
                start = stop
            assert start == seen.size and seen[-78:].any() and not again[-78:].any()

        whole = np.empty(mujoco.mj_stateSize(env.model, STATE))
        mujoco.mj_getState(env.model, env.data, whole, STATE)
        mujoco.mj_setState(other.model, other.data, whole, STATE)
        for _ in range(100):
            action = env.action_space.sample()
            one, two = env.step(action)[0], other.step(action)[0]
            assert np.array_equal(one, two), name
    print("mj_setState: the next 100 observations are equal, bit for bit")


if __name__ == "__main__":
    print("gymnasium", gymnasium.__version__, "| mujoco", mujoco.__version__)
    copies()
    workers()
    observations()
PY
"$dir/venv/bin/python" -I -W ignore "$dir/show.py"
