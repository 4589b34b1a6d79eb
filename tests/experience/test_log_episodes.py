"""Where a log's episodes end, what its time tells, and rows that are written twice."""

from __future__ import annotations

import pytest

from ssm_metarl.action_space import Continuous
from ssm_metarl.experience import log_csv

from .conftest import Log


@pytest.fixture(params=["blocks of one line", "one block"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in two rows may stand in two blocks."""
    if request.param == "blocks of one line":
        monkeypatch.setattr(log_csv, "BLOCK", 1)


pytestmark = pytest.mark.usefixtures("block_size")

EPISODES = "x,v,action,{}\n1,2,0,{}\n3,4,1,{}\n5,6,1,{}\n7,8,0,{}\n9,9,1,{}\n"


def obs(log: object) -> list[float]:
    return log.rollout.obs[:, 0, 0, 0].tolist()  # type: ignore[attr-defined]


def starts(log: object) -> list[int]:
    return log.rollout.reset[:, 0, 0].int().tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name",
    ["episode", "Episode", " EPISODE ", "episode_id", "episode_index", "episode_idx", "Episode ID",
     "trial", "run", "traj", "trajectory", "ep"],
)  # fmt: skip
@pytest.mark.parametrize("values", [(0, 0, 0, 1, 1), ("a", "a", "a", "b", "b")])
def test_names_of_an_episodes_number(log: Log, name: str, values: tuple[object, ...]) -> None:
    read = log(EPISODES.format(name, *values))
    assert obs(read) == [1, 3, 7] and starts(read) == [1, 0, 1]
    assert (read.num_rows, read.used_rows, read.num_episodes, read.notes) == (5, 3, 2, ())


@pytest.mark.parametrize("name", ["terminated", "truncated", "done", "terminal", "timeout", "Done"])
@pytest.mark.parametrize("values", ["00100", ("False", "False", "True", "False", "False")])
def test_marks_of_last_rows(log: Log, name: str, values: str) -> None:
    read = log(EPISODES.format(name, *values))
    assert obs(read) == [1, 3, 7] and starts(read) == [1, 0, 1]


def test_marks_of_last_and_first_rows(log: Log) -> None:
    assert obs(log(EPISODES.format("is_last", *"00100"))) == [1, 3, 7]
    assert obs(log(EPISODES.format("is_first", *"10010"))) == [1, 3, 7]
    # an end in the last row: what its action led to is not known
    assert obs(log(EPISODES.format("done", *"00001"))) == [1, 3, 5, 7]


def test_an_observation_may_be_called_like_an_episode(log: Log) -> None:
    read = log("run,t,action\n1,2,0\n3,1,1\n5,6,1\n", obs_names=("run", "t"))
    assert obs(read) == [1, 3] and read.period is None


def test_runs_and_the_episodes_within_them(log: Log) -> None:
    read = log("x,v,action,run,episode\n1,2,0,0,0\n2,2,0,0,0\n3,4,1,1,0\n4,4,1,1,0\n5,6,1,1,1\n")
    assert obs(read) == [1, 3]


def test_several_marks_agree_or_the_line_is_named(log: Log) -> None:
    text = EPISODES.format("episode,terminated,truncated", "0,0,0", "0,{}", *["1,0,0"] * 3)
    for ends in ("0,1", "1,0", "1,1", "0,0"):  # without a mark the episode was merely left
        assert obs(log(text.format(ends))) == [1, 5, 7]
    with pytest.raises(
        ValueError, match=r"line 3: expected episode and done to agree.*by done alone"
    ):
        log("x,v,action,episode,done\n1,2,0,0,1\n3,4,1,0,0\n5,6,1,0,0\n")
    with pytest.raises(
        ValueError, match=r"line 4: expected is_first and episode.*by episode alone"
    ):
        log("x,v,action,episode,is_first\n1,2,0,0,1\n3,4,1,0,0\n5,6,1,1,0\n7,8,1,1,0\n")
    with pytest.raises(ValueError, match="line 4: expected is_last and done to agree"):
        log("x,v,action,is_last,done\n1,2,0,0,0\n3,4,1,0,1\n5,6,1,0,0\n7,8,1,0,0\n")
    with pytest.raises(ValueError, match=r"line 3: done: expected 0 or 1, false or true, .* '2'"):
        log("x,v,action,done\n1,2,0,0\n3,4,1,2\n5,6,1,0\n")
    with pytest.raises(ValueError, match=r"line 2: done: expected 0 or 1.* 'perhaps'"):
        log("x,v,action,done\n1,2,0,perhaps\n3,4,1,0\n5,6,1,0\n")


def test_next_observations(log: Log) -> None:
    read = log(
        "x,v,action,next_x,next_v,terminated,truncated\n"
        "1,2,0,3,4,0,0\n"
        "3,4,1,5,6,1,0\n"
        "7,8,0,9,9,0,1\n"
        "20,2,1,21,2,0,0\n"
        "30,3,1,31,3,0,0\n"  # not where the row before led to
    )
    assert obs(read) == [1, 3, 7, 20, 30]
    assert read.rollout.next_obs[:, 0, 0, 0].tolist() == [3, 5, 9, 21, 31]
    assert starts(read) == [1, 0, 1, 1, 1]
    assert read.rollout.terminated[:, 0, 0].tolist() == [False, True, False, False, False]
    assert read.rollout.truncated[:, 0, 0].tolist() == [False, False, True, False, False]
    assert read.notes == (
        "1 rows do not go on where the row before led to: each starts an episode",
    )
    last = log("x,v,action,next_x,next_v\n1,2,0,3,4\n3,4,,,\n")
    assert obs(last) == [1]
    with pytest.raises(ValueError, match="line 2: next_v: expected a finite number"):
        log("x,v,action,next_x,next_v\n1,2,0,3,\n3,4,1,5,6\n")


def test_what_is_ignored_is_named_in_one_note(log: Log) -> None:
    read = log("x,v,action,next_x,comment,,step\n1,2,0,9,a,,0\n3,4,1,9,b,,1\n")
    assert read.notes == ("columns ignored: next_x, comment, step",)


@pytest.mark.parametrize(
    ("name", "times", "period", "note"),
    [
        ("time", (0, 0.02, 0.04, 0.06, 0.08), 0.02, None),
        ("T", (5, 5.5, 6, 6.5, 7), 0.5, None),
        ("time_ms", (0, 20, 40, 60, 80), 0.02, None),
        ("t_us", (0, 20000, 40000, 60000, 80000), 0.02, None),
        ("timestamp_ns", (0, 1, 2, 3, 4), 1e-9, None),
        ("time [ms]", (0, 20, 40, 60, 80), 0.02, None),
        ("stamp", (0, 20000, 40000, 60000, 80000), 0.02, "read in microseconds"),
        ("stamp", (0, 2e7, 4e7, 6e7, 8e7), 0.02, "read in nanoseconds"),
        ("stamp", [1.7e12 + 20 * i for i in range(5)], 0.02, "read in milliseconds"),
        ("stamp", [1.7e9 + 0.5 * i for i in range(5)], 0.5, None),
        ("sec", (0, 20, 40, 60, 80), 20, "a column of milliseconds is called sec_ms"),
        ("t", (3, 4, 5, 6, 7), None, "column t counts rows"),
        ("time_s", (3, 4, 5, 6, 7), 1, None),
        ("time", [f"2026-03-29T01:59:59.9{i}" for i in range(5)], 0.01, None),
        ("datetime", [f"2026-03-29 01:59:59.9{i}+02:00" for i in range(5)], 0.01, None),
        ("time", ("noon", "later", "", "", ""), None, "column time is ignored: 'noon' is no time"),
    ],
)  # fmt: skip
def test_period(
    log: Log, name: str, times: list[object], period: float | None, note: str | None
) -> None:
    read = log(EPISODES.format(name, *times))
    assert read.num_episodes == 1 and read.used_rows == 4
    assert read.period == (period if period is None else pytest.approx(period, rel=1e-4))
    assert len(read.notes) == (note is not None)
    assert note is None or note in read.notes[0]


def test_time_restarts_with_an_episode_only(log: Log) -> None:
    rows = "1,2,0,0.1,{0}\n2,2,0,0.2,{0}\n3,4,1,0,{1}\n4,4,1,0.1,{1}\n"
    assert log("x,v,action,t,episode\n" + rows.format(0, 1)).period == pytest.approx(0.1)
    with pytest.raises(ValueError, match="line 4: t: expected a later time than in the row before"):
        log("x,v,action,t,episode\n" + rows.format(0, 0))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            (0, 1.5, 2, 2, 3),
            "line 5: t: expected a later time than in the row before, received '2'",
        ),
        ((0, 3.5, 1, 4, 2), "line 4: t: expected a later time"),
        ((1, 0, 2.5, 3, 4), "line 3: t: expected a later time"),
        ((4, 3, 2.5, 1, 0), "expected rows in the order of time, received rows in reversed order"),
        (
            (0, 1, "oops", 3, 4),
            "line 4: t: expected seconds, or a date and time in ISO form.*'oops'",
        ),
        ((0, 1, "", 3, 4), "line 4: t: expected seconds, or a date.*'nothing'"),
    ],
)
def test_rows_that_are_not_in_order(log: Log, times: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log(EPISODES.format("t", *times))


def test_nothing_is_made_up_across_a_gap(log: Log) -> None:
    read = log(EPISODES.format("t", 0, 0.1, 0.3, 0.4, 0.5))
    assert obs(read) == [1, 5, 7] and starts(read) == [1, 1, 0]
    assert read.rollout.next_obs[:, 0, 0, 0].tolist() == [3, 7, 9]
    assert read.notes == ("1 gap(s) of over 1.5 periods: none is stepped over",)
    assert log(EPISODES.format("t", 0, 0.1, 0.25, 0.35, 0.45)).num_episodes == 1


def test_rows_that_are_written_twice(log: Log) -> None:
    for header, time in (("x,v,action\n", ""), ("x,v,action,t\n", ",{}")):
        rows = [f"{i},2,{i % 2}{time.format(i / 10)}\n" for i in range(6)]
        read = log(header + "".join(row * 2 for row in rows))
        assert obs(read) == [0, 1, 2, 3, 4] and read.num_rows == 12
        assert read.notes == ("6 rows that repeat the row before are left out",)
        assert obs(log(header + "".join(rows))) == obs(read)
    once = "x,v,action,t\n0,2,0,0\n1,2,1,1\n1,2,1,1\n2,2,0,2\n3,2,0,3\n"
    with pytest.raises(ValueError, match="line 4: t: expected a later time"):
        log(once)


def test_a_plant_at_rest_repeats_its_rows(log: Log) -> None:
    read = log("x,v,action\n" + "0,0,0\n" * 10 + "1,0,1\n2,0,1\n3,0,0\n")
    assert read.used_rows == 12 and read.notes == ()


def test_episodes_that_are_written_twice_row_by_row(log: Log) -> None:
    rows = [f"{i},2,0,{int(i % 4 == 3)}\n" for i in range(12)]
    read = log("x,v,action,done\n" + "".join(row * 2 for row in rows))
    assert obs(read) == obs(log("x,v,action,done\n" + "".join(rows)))
    assert read.num_episodes == 3


@pytest.mark.parametrize(
    ("rewards", "expected", "notes"),
    [
        (("1", "2", "3", "4", ""), [1, 2, 3, 4], 0),
        (("", "", "", "", ""), [0, 0, 0, 0], 0),
        (("1", "", "3", "nan", ""), [0, 0, 0, 0], 1),
    ],
)
def test_rewards(log: Log, rewards: tuple[str, ...], expected: list[float], notes: int) -> None:
    read = log(EPISODES.format("reward", *rewards))
    assert read.rollout.reward[:, 0, 0].tolist() == expected
    assert read.notes == ("rewards are missing in some rows: none is used",) * notes


def test_the_newest_rows_are_kept_and_all_are_checked(log: Log) -> None:
    rows = [f"{i},2,{i % 2}\n" for i in range(100)]
    read = log("x,v,action\n" + "".join(rows), max_rows=10)
    assert obs(read) == list(range(89, 99)) and starts(read) == [1] + [0] * 9
    assert (read.num_rows, read.used_rows) == (100, 10)
    assert read.notes == ("the last 10 of 100 rows are used",)
    with pytest.raises(ValueError, match="line 5: action: expected a whole number"):
        log("x,v,action\n" + "".join(rows[:3]) + "3,3,3\n" + "".join(rows), max_rows=10)
    with pytest.raises(ValueError, match="max_rows: expected at least 1, received 0"):
        log("x,v,action\n", max_rows=0)


@pytest.mark.parametrize(
    "cell", ["1_0.5", "inf", "-infinity", "1e39", "1e400", "0x10", "1d5", "\uff11"]
)
def test_what_is_no_number_to_a_policy(log: Log, cell: str) -> None:
    for text in (f"x,v,action\n1,{cell},0\n2,2,0\n3,3,0\n", f'x,v,action\n1,"{cell}",0\n2,2,0\n'):
        with pytest.raises(ValueError, match="line 2: v: expected a finite number"):
            log(text)
    with pytest.raises(ValueError, match="line 2: action: expected a finite number"):
        log(f"x,v,action\n1,2,{cell}\n2,2,0\n", action_space=Continuous(1))
    with pytest.raises(ValueError, match="line 2: reward: expected a finite number"):
        log(f"x,v,action,reward\n1,2,0,{cell}\n2,2,0,0\n")
