"""What least squares foresees, against the plant itself."""

import math

import pytest
import torch

from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.foresight import FARTHEST, foresee, foresee_plainly
from ssm_metarl.core.trial_input import LEVEL, PLANT, TrialInput
from ssm_metarl.seeding import generator

OBS, CODES, SEEN = 2, 2, 4


def plant(dead_time):
    """(O + S C, O) of z_{t+1} = z_t + z_t A + u_{t-d} B, and A and B."""
    rng = generator(dead_time, "foreseen plant")
    a = torch.from_numpy(rng.uniform(-0.2, 0.2, (OBS, OBS)))
    b = torch.from_numpy(rng.uniform(0.1, 0.3, (CODES, OBS)))
    found = torch.zeros(OBS + SEEN * CODES, OBS).double()
    found[:OBS] = a
    found[OBS + dead_time * CODES :][:CODES] = b
    return found, a, b


def driven(z, line, a, b, dead_time, now):
    """z after S steps, from the last actions (newest first), with `now` first and none after it."""
    line = list(line)
    for step in range(SEEN):
        line.insert(0, now if step == 0 else torch.zeros(CODES).double())
        z = z + z @ a + line[dead_time] @ b
    return z


@pytest.mark.parametrize("dead_time", range(SEEN))
def test_it_is_where_the_plant_goes_whatever_its_dead_time(dead_time):
    found, a, b = plant(dead_time)
    rng = generator(dead_time, "under way")
    z, line = (torch.from_numpy(rng.normal(size=s)) for s in (OBS, (SEEN, CODES)))
    nothing, now = torch.zeros(CODES).double(), torch.from_numpy(rng.normal(size=CODES))
    free, effect = foresee(z, line.flatten(), found, CODES)
    torch.testing.assert_close(free, driven(z, line, a, b, dead_time, nothing))
    torch.testing.assert_close(free + now @ effect, driven(z, line, a, b, dead_time, now))
    assert effect.abs().min() > 0.01  # an action now is felt within S steps


def test_the_plain_definition_says_the_same():
    rng = generator(0, "foreseen")
    lead = (3, 5)
    z, line, found = (
        torch.from_numpy(rng.normal(size=(*lead, *shape)))
        for shape in ((OBS,), (SEEN * CODES,), (OBS + SEEN * CODES, OBS))
    )
    for one, other in zip(
        foresee(z, line, found, CODES), foresee_plainly(z, line, found, CODES), strict=True
    ):
        torch.testing.assert_close(one, other)
        assert (one.abs() == FARTHEST).any() and (one.abs() < FARTHEST).any()


def test_the_input_has_it_in_place_of_actions_and_their_coefficients():
    """A plant of dead time 3, known after some steps, read back from the input."""
    _, a, b = plant(3)
    rng, steps = generator(3, "long run"), 80
    a = a - 0.3 * torch.eye(OBS)  # stable
    code = torch.from_numpy(rng.choice([-1.0, 1.0], (steps, CODES)))
    z = [torch.from_numpy(rng.normal(size=OBS))]
    for t in range(steps - 1):
        z.append(z[-1] + z[-1] @ a + (code[t - 3] @ b if t >= 3 else 0.0))
    start, limit = torch.arange(steps) == 0, torch.full((OBS,), torch.inf).double()
    layout = TrialInput(OBS, CODES, SEEN, identifies=True, foresees=True)
    x = layout.of_sequences(torch.stack(z), limit, code, torch.zeros(steps).double(), start, start)
    assert x.shape == (steps, layout.size) == (steps, 2 * OBS + (OBS + CODES + 1) * OBS + 3)
    moves, effect, free = x[:, 2 * OBS : -3].split([OBS * OBS, CODES * OBS, OBS], dim=-1)

    def unsquashed(value, sharpness):
        return (value * math.asinh(sharpness)).sinh() / sharpness

    torch.testing.assert_close(unsquashed(moves[-1], PLANT).view(OBS, OBS), a, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        unsquashed(effect[-1], PLANT).view(CODES, OBS), b, rtol=1e-3, atol=1e-4
    )
    line = code[steps - 1 - SEEN : steps - 1].flip(0)
    expected = driven(z[-1], line, a, b, 3, torch.zeros(CODES).double())
    torch.testing.assert_close(unsquashed(free[-1], LEVEL), expected, rtol=1e-3, atol=1e-4)


def test_a_mirrored_history_has_the_mirrored_input():
    layout = TrialInput(OBS, CODES, SEEN, identifies=True, foresees=True)
    rng, steps = generator(1, "mirror"), 20
    z, code = (torch.from_numpy(rng.normal(size=(steps, n))) for n in (OBS, CODES))
    start, factors = torch.arange(steps) % 8 == 0, torch.tensor([1.0, -1.0]).double()
    limit, reward = torch.ones(OBS).double(), torch.from_numpy(rng.normal(size=steps))
    trial = torch.arange(steps) == 0
    one = layout.of_sequences(z, limit, code, reward, start, trial)
    other = layout.of_sequences(z * factors, limit, -code, reward, start, trial)
    torch.testing.assert_close(other, one * layout.reflection(factors))


def test_what_is_not_identified_is_not_foreseen():
    with pytest.raises(ValueError, match="foresees: expected False without identifies"):
        PolicyConfig(in_context=True, obs_scale=(1.0,), identifies=False, foresees=True)
