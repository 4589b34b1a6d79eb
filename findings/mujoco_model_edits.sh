#!/usr/bin/env bash
# MuJoCo 4.0.0: a mass or a size changed in a compiled model is half a change, and where no contact is
# made nothing shows it.
#
# One would guess that a model whose `body_mass` and `body_inertia` are multiplied, or whose
#   `geom_size` is set, behaves like the model compiled with these numbers; and that `mj_setConst`,
#   made for that, may be called on the data of the running simulation.
# What happens
#   - Mass and inertia ten times as large: a joint swings as in the recompiled model, to rounding. In a
#     contact or at a joint's limit it does not. How stiff these are is scaled by inverse masses that
#     were computed at compile time (`body_invweight0`, `dof_invweight0`), so that a body rests at the
#     same depth whatever it weighs; the edited ball rests 5 times, at a hundredfold mass 53 times as
#     deep.
#   - A ball of 0.1 m set to 0.3 m: the collision detector goes by the old bounding radius
#     (`geom_rbound`), so the ball falls through the floor until its centre is 0.1 m above it. Then it
#     is found 0.2 m deep in it, and thrown higher than it ever rests.
#   - `mj_setConst(model, data)` repairs both (the inertia that the size implies, it does not), and puts
#     `data.qpos` back to where the model starts, keeping `data.qvel` and `data.time`. Give it an
#     `MjData` of its own.
# Where: the constants are set in mj_setConst, which the compiler calls and mj_step does not. Of earlier
#   releases, 3.2.0, 3.8.0 and 3.13.0 did not renew `geom_rbound` even there; 3.17.0 did.
# For whoever randomises plants: masses edited in place also make the floor and the joint limits softer
#   or harder, so a policy adapts to another plant than the one that was named. A test in free motion
#   does not notice. Recompile, or call mj_setConst with scratch data after each edit.
#
# Seen 2026-11-29, Python 3.11, Linux x86-64:
#   mujoco 4.0.0
#   arm, 10 x mass: free swing differs by 8.3e-16 rad; limit of 30 degrees holds at 32.35 edited, 31.66 recompiled
#     still of the old mass: body_invweight0, dof_invweight0, body_subtreemass, dof_M0
#   ball, 10 x mass rests deep in the floor by 0.367 mm recompiled, 1.962 mm edited, 0.367 mm and mj_setConst
#   ball, 100 x mass rests deep in the floor by 0.367 mm recompiled, 19.620 mm edited, 0.367 mm and mj_setConst
#   ball of 0.3 m, recompiled: centre down to 0.27 m, then up to 0.30 m
#   ball of 0.3 m, edited: centre down to 0.09 m, then up to 0.47 m
#     after mj_setConst as recompiled, but the inertia: 0.004 for 0.036 kg m2
#   mj_setConst on live data: height 0.802, speed -1.962, time 0.2 -> 1.000, -1.962, 0.2
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    mujoco==4.0.0 mujoco-core==4.0.0 numpy==2.4.6
cat >"$dir/show.py" <<'PY'
import mujoco
import numpy as np

BALL = """<mujoco><worldbody><geom type="plane" size="5 5 .1"/>
<body pos="0 0 {z}"><freejoint/><geom type="sphere" size="{r}" mass="{m}"/></body>
</worldbody></mujoco>"""
ARM = """<mujoco><worldbody><body><joint type="hinge" axis="0 1 0" limited="true" range="-30 30"/>
<geom type="capsule" fromto="0 0 0 0 0 -1" size=".05" mass="{m}"/></body></worldbody></mujoco>"""


def compiled(xml, **values):
    return mujoco.MjModel.from_xml_string(xml.format(**values))


def heavier(model, factor):
    model.body_mass *= factor
    model.body_inertia *= factor
    return model


def course(model, coordinate, steps, speed=None):
    """One coordinate's course over so many steps of 2 ms."""
    data, seen = mujoco.MjData(model), []
    if speed is not None:
        data.qvel[0] = speed
    for _ in range(steps):
        mujoco.mj_step(model, data)
        seen.append(data.qpos[coordinate])
    return np.array(seen)


def repaired(model):
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


print("mujoco", mujoco.__version__)
edited, right = heavier(compiled(ARM, m=1), 10), compiled(ARM, m=10)
swing = np.abs(course(edited, 0, 300, 0.5) - course(right, 0, 300, 0.5)).max()
stop = [np.degrees(course(model, 0, 300, 5).max()) for model in (edited, right)]
print(f"arm, 10 x mass: free swing differs by {swing:.1e} rad; "
      f"limit of 30 degrees holds at {stop[0]:.2f} edited, {stop[1]:.2f} recompiled")
assert swing < 1e-9 and stop[0] > stop[1] + 0.5
stale = [name for name in ("body_invweight0", "dof_invweight0", "body_subtreemass", "dof_M0")
         if not np.allclose(getattr(edited, name), getattr(right, name))]
print("  still of the old mass:", ", ".join(stale))
assert stale == ["body_invweight0", "dof_invweight0", "body_subtreemass", "dof_M0"]

for factor in (10, 100):
    depth = {
        "recompiled": compiled(BALL, z=0.1, r=0.1, m=factor),
        "edited": heavier(compiled(BALL, z=0.1, r=0.1, m=1), factor),
        "and mj_setConst": repaired(heavier(compiled(BALL, z=0.1, r=0.1, m=1), factor)),
    }
    depth = {how: 1000 * (0.1 - course(model, 2, 5000)[-1]) for how, model in depth.items()}
    print(f"ball, {factor} x mass rests deep in the floor by",
          ", ".join(f"{value:.3f} mm {how}" for how, value in depth.items()))
    assert np.isclose(depth["and mj_setConst"], depth["recompiled"], rtol=1e-6)
    assert depth["edited"] > 0.5 * factor * depth["recompiled"]

grown = compiled(BALL, z=1, r=0.1, m=1)
grown.geom_size[1, 0] = 0.3
right = compiled(BALL, z=1, r=0.3, m=1)
for how, model in (("recompiled", right), ("edited", grown)):
    height = course(model, 2, 1500)
    lowest = height.argmin()
    print(f"ball of 0.3 m, {how}: centre down to {height[lowest]:.2f} m, "
          f"then up to {height[lowest:].max():.2f} m")
    assert (height[lowest] < 0.11) == (how == "edited")
    assert (height[lowest:].max() > 0.4) == (how == "edited")
assert grown.geom_rbound[1] == 0.1
height = course(repaired(grown), 2, 1500)
assert grown.geom_rbound[1] == 0.3 and np.allclose(height, course(right, 2, 1500))
print(f"  after mj_setConst as recompiled, but the inertia: {grown.body_inertia[1, 0]:.3f} "
      f"for {right.body_inertia[1, 0]:.3f} kg m2")
assert np.isclose(9 * grown.body_inertia[1, 0], right.body_inertia[1, 0])

data = mujoco.MjData(right)
for _ in range(100):
    mujoco.mj_step(right, data)
before = data.qpos[2], data.qvel[2], data.time
mujoco.mj_setConst(right, data)
after = data.qpos[2], data.qvel[2], data.time
print("mj_setConst on live data: height {:.3f}, speed {:.3f}, time {:.1f} -> ".format(*before)
      + "{:.3f}, {:.3f}, {:.1f}".format(*after))
assert before[0] < 0.9 and after == (1.0, *before[1:])
PY
"$dir/venv/bin/python" -I "$dir/show.py"
