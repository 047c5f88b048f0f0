import csv

import pytest

from lightbox.bench import ledger
from lightbox.errors import WorkError

ROW = {"case": "a, b", "peer": 'the "other"', "value": 2.5, "unit": "steps/s", "ratio": 1.25, "notes": "x; y"}


def test_rows_are_appended_below_older_ones_under_one_header(tmp_path):
    path = tmp_path / "results.csv"
    ledger.append(path, "train_throughput", [ROW])
    first = path.read_text()
    ledger.append(path, "data", [ROW | {"ratio": 3}, ROW])
    assert path.read_text().startswith(first)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["benchmark"] for row in rows] == ["train_throughput", "data", "data"]
    assert [row["ratio"] for row in rows] == ["1.25", "3", "1.25"]
    assert (rows[0]["case"], rows[0]["peer"]) == ("a, b", 'the "other"')
    assert all(row["date"] and row["machine"] for row in rows)


def test_a_file_with_another_header_is_left_alone(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("name,age\n")
    with pytest.raises(WorkError, match="begins with 'name,age'"):
        ledger.append(path, "data", [ROW])
    assert path.read_text() == "name,age\n"


def test_an_unknown_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="speed"):
        ledger.append(tmp_path / "results.csv", "data", [ROW | {"speed": 1}])


def test_the_recorded_table_has_the_header(request):
    table = request.config.rootpath / "benchmarks" / "results.csv"
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == ledger.HEADER
    assert all(len(row) == len(ledger.HEADER) for row in rows)
    assert all(float(row[ledger.HEADER.index("ratio")]) > 0 for row in rows[1:])
