"""Kills at any instant: every checkpoint stays, and the lineage goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssm_metarl.recursive_self_improvement.replay import replay

from .conftest import GENERATIONS, SETTINGS
from .disturbed import check_state

KILLS, NIGHTLY_KILLS = 6, 200


RUN_AND_KILL = """
import importlib.util, os, signal, sys, time, traceback
conftest, model, generations, settings = *sys.argv[1:4], eval(sys.argv[4])
spec = importlib.util.spec_from_file_location("simulated", conftest)
simulated = sys.modules["simulated"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulated)
from pathlib import Path
def begin(folder):
    return simulated.RecursiveSelfImprovementAgent(
        initial_model=model, config=simulated.RSIConfig(**settings), folder=folder,
        executor=simulated.SimulatedExecutor())
with begin(None) as agent:
    agent.improve()  # everything is imported once
print("ready", flush=True)
for line in sys.stdin:
    folder, delay = line.rstrip("\\n").split("\\t")
    if (pid := os.fork()) == 0:
        code = 1
        try:
            agent = begin(Path(folder))
            while len(agent.lineage.records) < int(generations):
                agent.improve()
            agent.close()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    time.sleep(float(delay))
    os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def check_kills(history: list[str], model: Path, folder: Path, kills: int) -> None:
    """Kill lineages at random instants until there were so many kills; finish each of them."""
    conftest = Path(__file__).with_name("conftest.py")
    arguments = [conftest, model, GENERATIONS, repr(SETTINGS)]
    rng = np.random.default_rng(21)
    seen, lineages = set(), 0
    with subprocess.Popen(
        [sys.executable, "-c", RUN_AND_KILL, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while kills > 0:
            lineage = folder / f"killed-{lineages}"
            lineage.mkdir(parents=True)
            lineages, found, code = lineages + 1, 0, -9
            while code != 0:
                process.stdin.write(f"{lineage}\t{rng.uniform(0, 0.6)}\n")
                process.stdin.flush()
                code = int(process.stdout.readline())
                assert code in (0, -9)
                kills -= code == -9
                found = check_state(lineage, history, at_least=found)
                seen.add(found)
            assert found == len(history)
            assert replay(lineage)["hash"] == history[-1]
        process.stdin.close()
    assert len(seen) > 2  # kills hit different places


class TestKill:
    def test_loses_nothing(self, undisturbed, generation_zero, tmp_path):
        check_kills(undisturbed, generation_zero, tmp_path, KILLS)

    @pytest.mark.nightly
    def test_never_loses_anything(self, undisturbed, generation_zero, tmp_path):
        check_kills(undisturbed, generation_zero, tmp_path, NIGHTLY_KILLS)
