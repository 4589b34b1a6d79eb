"""In-context least squares: the plant it finds, step by step or all at once; what it forgets."""

import numpy as np
import pytest
import torch

from float32 import assert_only_rounded
from ssm_metarl.core.identification import KEEP, Identification
from ssm_metarl.seeding import generator

ROWS, OBS, ACTIONS, STEPS = 3, 2, 1, 30


def linear_plants(steps=STEPS, seed=0):
    """z_{t+1} = z_t + A z_t + B u_t of three plants, without noise; also W = (A; B)."""
    rng = generator(seed, "plants")
    weights = torch.from_numpy(rng.uniform(-0.3, 0.3, (ROWS, OBS + ACTIONS, OBS)))
    u = torch.from_numpy(rng.choice([-1.0, 1.0], (steps, ROWS, ACTIONS)))
    z = [torch.from_numpy(rng.normal(size=(ROWS, OBS)))]
    for t in range(steps):
        phi = torch.cat([z[-1], u[t]], dim=-1)
        z.append(z[-1] + torch.einsum("rf,rfo->ro", phi, weights))
    z = torch.stack(z)
    # At step t the last action is u_{t-1}.
    actions = torch.cat([torch.zeros(1, ROWS, ACTIONS), u])
    return z, torch.cat([z[:1], z[:-1]]), actions, weights


def starts(steps, *at):
    flags = torch.zeros(steps, ROWS, dtype=torch.bool)
    flags[list(at)] = True
    return flags


def test_a_plant_without_noise_is_found_after_as_many_steps_as_unknowns():
    z, before, actions, weights = linear_plants()
    first = starts(len(z), 0)
    found = Identification(ROWS, OBS, ACTIONS).update(z, before, actions, first, first)
    found = found.view(-1, ROWS, OBS + ACTIONS, OBS)
    assert found[0].abs().max() == 0
    torch.testing.assert_close(found[6], weights, rtol=0, atol=1e-3)
    assert (found[2] - weights).abs().max() > 0.01  # two equations, three unknowns


def test_it_is_ridge_regression_with_forgetting():
    z, before, actions, _ = linear_plants()
    noisy = z + 0.1 * torch.from_numpy(generator(1, "noise").normal(size=z.shape))
    first = starts(len(z), 0)
    found = Identification(ROWS, OBS, ACTIONS).update(noisy, before, actions, first, first)
    phi = torch.cat([before, actions], -1)[1:]
    weight = torch.tensor([KEEP ** (STEPS - 1 - t) for t in range(STEPS)]).double().sqrt()
    left, right = (x * weight[:, None] for x in (phi[:, 1], (noisy - before)[1:, 1]))
    expected = np.linalg.lstsq(left.numpy(), right.numpy(), rcond=None)[0]
    torch.testing.assert_close(
        found[-1, 1].view(OBS + ACTIONS, OBS), torch.from_numpy(expected), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_and_plain_agree(dtype):
    z, before, actions, _ = linear_plants()
    trial = starts(len(z), 0, 12)
    episode = trial | starts(len(z), 5, 20)
    columns = [x.to(dtype) for x in (z, before, actions)]
    fast = Identification(ROWS, OBS, ACTIONS).update(*columns, episode, trial)
    plain = Identification(ROWS, OBS, ACTIONS).update_plainly(*columns, episode, trial)
    assert fast.dtype == plain.dtype == dtype
    settled = [*range(8, 12), *range(15, len(z))]  # before, two of three equations are unknown
    if dtype == torch.float64:
        torch.testing.assert_close(fast[settled], plain[settled])
        return

    def plainly(*columns):
        plants = Identification(ROWS, OBS, ACTIONS)
        return plants.update_plainly(*columns, episode, trial)[settled]

    assert_only_rounded(fast[settled], plainly, *columns)


def test_step_by_step_is_the_same_as_all_at_once():
    z, before, actions, _ = linear_plants()
    trial = starts(len(z), 0, 12)
    columns = (z, before, actions, trial | starts(len(z), 5), trial)
    whole = Identification(ROWS, OBS, ACTIONS).update(*columns)
    single = Identification(ROWS, OBS, ACTIONS)
    steps = [single.update(*(x[t : t + 1] for x in columns)) for t in range(len(z))]
    assert torch.equal(torch.cat(steps), whole)


def test_a_jump_between_episodes_is_no_change_and_a_new_trial_knows_nothing():
    z, before, actions, weights = linear_plants()
    jumped = z.clone()
    jumped[15] += 50  # before[15] is where the last episode ended
    trial = starts(len(z), 0)
    columns = (jumped, before, actions)
    honest = Identification(ROWS, OBS, ACTIONS).update(*columns, trial | starts(len(z), 15), trial)
    fooled = Identification(ROWS, OBS, ACTIONS).update(*columns, trial, trial)
    right = weights.flatten(1)
    assert (honest[15] - right).abs().max() < 1e-3
    assert (fooled[15] - right).abs().max() > 1
    fresh = trial | starts(len(z), 15)
    cleared = Identification(ROWS, OBS, ACTIONS).update(*columns, fresh, fresh)
    assert cleared[15].abs().max() == 0


def test_rows_and_steps_that_do_not_fit_are_refused():
    plants = Identification(ROWS, OBS, ACTIONS)
    z, flags = torch.zeros(5, ROWS, OBS), torch.zeros(5, ROWS, dtype=torch.bool)
    actions = torch.zeros(5, ROWS, ACTIONS)
    plants.update(z, z, actions, flags, flags)
    for name, wrong in (
        ("z", (z[:, 1:], z, actions, flags, flags)),
        ("before", (z, z[1:], actions, flags, flags)),
        ("actions", (z, z, actions[..., 1:], flags, flags)),
        ("episode_start", (z, z, actions, flags[1:], flags)),
        ("trial_start", (z, z, actions, flags, flags.float())),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            plants.update(*wrong)
