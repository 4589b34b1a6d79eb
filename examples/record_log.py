"""Write what a trolley with a motor wired backwards does on random actions: a log to adapt from."""

import csv
import sys

import numpy as np
from my_plant import FAMILY

from ssm_metarl import Environment

env = Environment(FAMILY, task={"motor": 1.5, "sign": -1})
rng = np.random.default_rng(0)
with open(sys.argv[1], "w", newline="") as file:
    log = csv.writer(file)
    log.writerow(["episode", "place", "speed", "action"])
    for episode in range(3):
        obs, _ = env.reset(seed=episode)
        ended = False
        while not ended:
            action = rng.integers(2)
            log.writerow([episode, *obs, action])
            obs, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
        log.writerow([episode, *obs, ""])  # where it ended, no action was taken
