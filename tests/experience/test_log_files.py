"""Logs as spreadsheets, loggers and pandas write them, and one line where they cannot be read."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from ssm_metarl.action_space import Continuous, Discrete
from ssm_metarl.experience import log_csv
from ssm_metarl.experience.plant_log import PlantLog, open_plant_log

from .conftest import Log

PLAIN = "x,v,action\n0.5,2,0\n1.5,-4,1\n2.5,6,1\n3.5,8,\n"


def numbers(log: PlantLog) -> list[list[float]]:
    rollout = log.rollout
    columns = [rollout.obs[:, 0, 0], rollout.action[:, 0], rollout.next_obs[:, 0, 0]]
    return np.concatenate([c.numpy() for c in columns], axis=1).tolist()


EXPECTED = [[0.5, 2, 0, 1.5, -4], [1.5, -4, 1, 2.5, 6], [2.5, 6, 1, 3.5, 8]]

COMMAS = PLAIN.replace(",", ";").replace(".", ",")
READ = {
    "plain": (PLAIN, 0),
    "no newline at the end": (PLAIN.removesuffix("\n"), 0),
    "carriage returns": (PLAIN.replace("\n", "\r\n"), 0),
    "blank lines": (PLAIN.replace("\n", "\n\n"), 0),
    "semicolons": (PLAIN.replace(",", ";"), 0),
    "semicolons and decimal commas": (COMMAS, 0),
    "tabs": (PLAIN.replace(",", "\t"), 0),
    "tabs and decimal commas": (COMMAS.replace(";", "\t"), 0),
    "bars": (PLAIN.replace(",", "|"), 0),
    "all quoted": ("\n".join(
        ",".join(f'"{c}"' for c in line.split(",")) for line in PLAIN.splitlines()
    ), 0),
    "quoted decimal commas": ("\n".join(
        ",".join(f'"{c}"' for c in line.split(";")) for line in COMMAS.splitlines()
    ), 0),
    "spaces": (PLAIN.replace(",", " , "), 0),
    "capitals": (PLAIN.replace("x,v,action", "X, V ,Action"), 0),
    "units in brackets": (PLAIN.replace("x,v,action", "x [m],v (m/s),action"), 0),
    "a row of units": (PLAIN.replace("action\n", "action\nm,m/s,-\n"), 1),
    "a commented header": (PLAIN.replace("x,v", "# x,v"), 0),
    "comments": ("# made by a logger\n% 2\n" + PLAIN.replace("2.5", "# so, \"far\n2.5"), 1),
    "a spreadsheet's first line": ("sep=;\n" + COMMAS, 0),
    "trailing commas": (PLAIN.replace("\n", ",\n"), 0),
    "trailing commas in the rows": (PLAIN.replace("\n", ",\n").replace("action,", "action"), 0),
    "rows without their last commas": (PLAIN.replace("8,\n", "8\n"), 0),
    "an index": ("".join(f"{i - 1 if i else ''},{line}\n"
                         for i, line in enumerate(PLAIN.splitlines())), 0),
    "words for actions": (PLAIN.replace(",1\n", ",True\n").replace(",0\n", ",False\n"), 0),
    "actions as floats": (PLAIN.replace(",1\n", ",1.0\n").replace(",0\n", ",0.0\n"), 0),
    "NaN for the last action": (PLAIN.replace("8,\n", "8,NaN\n"), 0),
    "a last line that is cut": (PLAIN + "4.", 1),
    "a last line that is cut in a quote": (PLAIN + '4.5,"', 1),
    "bytes that are not UTF-8": (PLAIN.replace("\n", ",\xe9\n").encode("latin-1"), 1),
    "a byte order mark": (b"\xef\xbb\xbf" + PLAIN.encode(), 0),
    "UTF-16": (PLAIN.encode("utf-16"), 0),
    "UTF-16, big end first": (b"\xfe\xff" + PLAIN.encode("utf-16-be"), 0),
    "gzip": (gzip.compress(PLAIN.encode()), 0),
}  # fmt: skip


@pytest.mark.parametrize("size", [1, log_csv.BLOCK])
@pytest.mark.parametrize("name", READ)
def test_what_is_read(log: Log, name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_csv, "BLOCK", size)
    content, notes = READ[name]
    read = log(content)
    assert numbers(read) == EXPECTED
    assert len(read.notes) == notes


def test_a_repeated_header_starts_an_episode(log: Log) -> None:
    read = log(PLAIN + PLAIN)
    assert numbers(read) == EXPECTED * 2
    assert read.rollout.reset[:, 0, 0].tolist() == [True, False, False] * 2
    assert read.notes == ("the header is repeated 1 time(s): each starts an episode",)


def test_what_is_said_about_lines_that_are_left_out(log: Log) -> None:
    assert log(READ["a row of units"][0]).notes == ("line 2 is taken for units: m, m/s",)
    assert log(PLAIN + "4.").notes == ("line 6, the last one, is cut short and left out",)
    assert log(READ["comments"][0]).notes == ("1 comment line(s) between the rows are skipped",)


REFUSED = {
    "angles in degrees": (
        "x,theta [deg],action\n", r"theta \[deg\]: expected rad, received deg$"),
    "rates in degrees": ("x,theta (deg/s),action\n", "expected rad/s, received deg/s$"),
    "degree signs": ("x,theta [°],action\n", "expected rad, received °$"),
    "millimetres": ("x [mm],theta,action\n", r"x \[mm\]: expected m, received mm$"),
    "a row of degrees": (
        "x,theta,action\nm,deg,1\n0,0,1\n", "line 2: theta: expected rad, received deg$"),
    "thousands": ('x,theta,action\n"1,234.5",1,1\n', r"line 2: x: .*received '1,234\.5'$"),
    "decimal commas, then points": (
        "x;theta;action\n0,5;1;0\n1.5;2;1\n2,5;2;1\n", r"line 3: x: .*received '1\.5'$"),
    "decimal points, then commas": (
        "x;theta;action\n0.5;1;0\n1,5;2;1\n2.5;2;1\n", "line 3: x: .*received '1,5'$"),
    "unquoted decimal commas": (
        "x,theta,action\n0,5,1,5,0\n", "line 2: expected 3 cells, received 5$"),
    "a quote that is not closed": (
        'x,theta,action\n1,2,0\n1,"2,0\n1,2,0\n', "line 3: expected a line of a CSV file"),
    "a cell of two lines": (
        'x,theta,note,action\n1,2,"a\nb",0\n1,2,,0\n', "line 2: expected a line of a CSV file"),
    "newlines in the header": ("x,the\x85ta,action\n", r"received x, the\\x85ta, action$"),
    "many columns": (",".join(map(str, range(999))), "18, 19, and 979 more$"),
    "a long cell": (f"x,theta,action\n{'9' * 999},2,0\n", r"received '9{60}\.\.\.'$"),
    "a longer cell": (f"x,theta,action\n\"{'9' * 200_000}\",2,0\n", "line 2: expected a line of"),
    "no newline": ("x,theta,action\n" + "9" * (1 << 22), "line 2: expected at most 1,048,576 char"),
    "NUL": ("x,theta,action\0\n", "expected a CSV file in UTF-8, or in UTF-16"),
    "NUL in a cell": ("x,theta,action\n\0,1,0\n1,1,\n", r"line 2: x: .*received '\\x00'$"),
    "no such unit": ("x,theta [degC],v,action\n1,oops,2,0\n", r"line 2: theta \[degC\]: .*'oops'$"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_in_one_line(log: Log, name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        log(text, obs_names=("x", "theta"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(PLAIN.encode() * 999)[:99],
        gzip.compress(PLAIN.encode())[:12] + b"\xff" * 20,
        b"\x1f\x8b",
        PLAIN.encode("utf-16")[:-1],
        b"PAR1",
        b"PAR1" + PLAIN.encode() + b"PAR1",
    ],
    ids=["cut gz", "broken gz", "empty gz", "cut UTF-16", "empty Parquet", "no Parquet"],
)
def test_damaged_files(log: Log, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"log\.csv: expected a \w+ file, rece") as caught:
        log(content)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Is a directory"):
        open_plant_log(tmp_path, obs_dim=2, action_space=Discrete(2))


@pytest.fixture
def table(tmp_path: Path) -> Log:
    """Opens a log of columns, from a Parquet file."""

    def run(columns: dict[str, object], **options: object) -> PlantLog:
        path = tmp_path / str(options.pop("name", "log.parquet"))
        parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
        settings = {"obs_dim": 2, "obs_names": ("x", "v"), "action_space": Discrete(2)} | options
        return open_plant_log(path, **settings)  # type: ignore[arg-type]

    return run


X, V, ACTION = [0.5, 1.5, 2.5, 3.5], [2, -4, 6, 8], [0, 1, 1, None]


def test_parquet(table: Log) -> None:
    for action in (ACTION, [False, True, True, None], ["0", "1", "1", ""], [0.0, 1.0, 1.0, 7.5]):
        read = table({"V [m/s]": V, "action": action, "x": X, "a.b": X})
        assert numbers(read) == EXPECTED
        assert read.notes == ("columns ignored: a.b",)
    assert numbers(table({"x": X, "v": V, "action": ACTION, "note": [[1]] * 4}, name="a.log"))
    encoded = pyarrow.array(["a", "a", "b", "b"]).dictionary_encode()
    read = table({"x": X, "v": V, "action": [*ACTION[:3], 0], "trial": encoded})
    assert read.rollout.obs[:, 0, 0, 0].tolist() == [0.5, 2.5] and read.num_episodes == 2
    one = table({"x": X, "v": V, "action": X}, action_space=Continuous(1))
    assert one.rollout.action[:, 0, 0, 0].tolist() == [0.5, 1.5, 2.5]


def test_columns_of_one_name_in_parquet(tmp_path: Path) -> None:
    columns = {"v": V, "done": [0, 0, 1, 0], "x": X, "done ": [0, 1, 1, 0], "action": ACTION}
    names = [name.strip() for name in columns]
    made = pyarrow.Table.from_arrays([pyarrow.array(c) for c in columns.values()], names)
    parquet.write_table(made, path := tmp_path / "log.parquet")
    log = open_plant_log(path, obs_dim=2, obs_names=("x", "v"), action_space=Discrete(2))
    assert log.rollout.obs[:, 0, 0].tolist() == [[0.5, 2]]  # either of both ends an episode


def test_time_in_parquet(table: Log) -> None:
    for kind, period in (("ms", 0.02), ("us", 2e-5), ("ns", 2e-8)):
        for made in (pyarrow.timestamp(kind), pyarrow.duration(kind)):
            time = pyarrow.array([0, 20, 40, 60], made)
            read = table({"x": X, "v": V, "action": ACTION, "time_ms": time})
            assert read.period == pytest.approx(period) and read.notes == ()
    with pytest.raises(ValueError, match="row 3: t: expected a later time than in the row before"):
        table({"x": X, "v": V, "action": ACTION, "t": [0.5, 1, 1, 2]})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": X, "action": ACTION}, "expected columns x, v, action, received x, action$"),
        (
            {"x": X, "v": [2, None, 3, 4], "action": ACTION},
            "row 2: v: .* number, received 'nothing'",
        ),
        ({"x": X, "v": ["a"] * 4, "action": ACTION}, "row 1: v: expected a finite number, .*'a'$"),
        ({"x": X, "v": V, "action": [0, 1, 2, 1]}, "row 3: action: expected a whole number"),
        ({"x": X, "v": [[1.0]] * 4, "action": ACTION}, "v: expected a column of numbers, .* list<"),
        ({"x": [], "v": [], "action": []}, r"at least two rows of an episode.*received 0 row\(s\)"),
        ({"x [deg]": X, "v": V, "action": ACTION}, r"x \[deg\]: expected rad, received deg$"),
    ],
)
def test_what_is_refused_in_a_parquet_file(
    table: Log, columns: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        table(columns)


def test_parquet_without_pyarrow(table: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    table({"x": X, "v": V, "action": ACTION})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"expected pyarrow.* pip install 'ssm-metarl\[logs\]'$"):
        table({"x": X, "v": V, "action": ACTION})
