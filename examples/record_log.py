"""Write what a trolley with a motor wired backwards does on random actions: a log to adapt from."""

import csv
import sys

import numpy as np
from my_plant import FAMILY

from ssm_metarl import Environment

env = Environment(FAMILY, task={"motor": 1.5, "sign": -1})
obs, _ = env.reset(seed=0)
actions = np.random.default_rng(1).uniform(-1, 1, (60, 1)).astype(np.float32)
with open(sys.argv[1], "w", newline="") as file:
    log = csv.writer(file)
    log.writerow(["time", "place", "speed", "action", "reward"])
    for step, action in enumerate(actions):
        after, reward, *_ = env.step(action)
        log.writerow([0.1 * step, *obs, *action, reward])
        obs = after
