"""A stage keeps each result at once, goes on where it was killed, and tries again what failed."""

import json
import logging

import pytest

from lightbox.errors import RequestError, WorkError
from lightbox.paper.stages import Item, Stage, only_writer, run_stage


class Doubling:
    """A stage's work that counts what it is asked, and raises what it is told to."""

    def __init__(self, errors=()):
        self.asked, self.errors = [], dict(errors)

    def __call__(self, item):
        self.asked.append(item.id)
        if item.id in self.errors:
            raise self.errors[item.id]
        return {"twice": 2 * item.inputs}


def items_of(*numbers):
    return [Item(f"i{number}", number) for number in numbers]


def fault(name):
    return WorkError(f"Item {name}", "It is odd", "Leave it out")


def run(folder, work, numbers=(1, 2, 3, 4), **options):
    settings = options.pop("settings", {"base": 2})
    return run_stage(Stage("double", settings, work, **options), items_of(*numbers), folder)


def test_a_killed_stage_goes_on_behind_its_last_item(tmp_path):
    killed = Doubling({"i3": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed)
    again = Doubling()
    outcome = run(tmp_path, again)
    assert (killed.asked, again.asked) == (["i1", "i2", "i3"], ["i3", "i4"])
    assert outcome.results == {f"i{n}": {"twice": 2 * n} for n in (1, 2, 3, 4)}
    assert outcome.done_now == 2


def test_a_line_is_on_the_disk_before_the_next_item_begins(tmp_path):
    seen = []

    def work(item):
        path = tmp_path / "double.jsonl"
        seen.append(path.read_bytes().count(b"\n") if path.exists() else 0)
        return {"twice": item.inputs}

    run(tmp_path, work)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_cut_last_line_is_dropped_and_its_item_done_again(tmp_path, cut):
    run(tmp_path, Doubling())
    path = tmp_path / "double.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Doubling()
    assert len(run(tmp_path, again).results) == 4
    assert again.asked == ["i4"]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "spoil", [lambda line: line.replace(b'"twice":4', b'"twice":5'), lambda line: b"[]\n", lambda _: b"\n"]
)
def test_an_edited_line_is_refused_by_its_number(tmp_path, spoil):
    run(tmp_path, Doubling())
    path = tmp_path / "double.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = spoil(lines[1])
    path.write_bytes(b"".join(lines))
    with pytest.raises(RequestError, match="Line 2 of .*It was cut or edited.*Delete that line"):
        run(tmp_path, Doubling())


def test_a_failed_item_is_recorded_with_its_reason_and_tried_again_by_the_next_run(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    outcome = run(tmp_path, Doubling({"i2": fault("i2")}))
    assert list(outcome.results) == ["i1", "i3", "i4"]
    assert str(outcome.failures["i2"]) == "Item i2. It is odd. Leave it out."
    record = json.loads((tmp_path / "double.jsonl").read_text().splitlines()[1])
    assert record["failed"] == ["Item i2.", "It is odd.", "Leave it out."]
    assert "3 of 4 done, 3 of them now; 1 failed, 0 not tried" in caplog.text
    again = Doubling()
    assert (len(run(tmp_path, again).results), again.asked) == (4, ["i2"])


def test_an_error_that_is_not_about_one_item_ends_the_stage_and_keeps_what_is_done(tmp_path):
    refused = RequestError("A key", "It is refused", "Set another")
    with pytest.raises(RequestError, match="It is refused"):
        run(tmp_path, Doubling({"i2": refused}))
    again = Doubling()
    outcome = run(tmp_path, again, fails_on=RequestError)
    assert (again.asked, len(outcome.results)) == (["i2", "i3", "i4"], 4)


def test_after_failures_in_a_row_the_rest_waits_and_what_is_known_counts(tmp_path):
    run(tmp_path, Doubling(), numbers=(5,))
    down = Doubling({f"i{n}": fault(n) for n in (1, 2, 3, 4)})
    outcome = run(tmp_path, down, numbers=(1, 2, 3, 4, 5), stops_after=2)
    assert down.asked == ["i1", "i2"]
    assert (outcome.not_tried, list(outcome.results)) == (["i3", "i4"], ["i5"])
    flaky = Doubling({"i1": fault(1), "i3": fault(3)})
    assert run(tmp_path, flaky, stops_after=2).not_tried == []


def test_other_settings_or_inputs_are_other_results_and_the_first_ones_stay(tmp_path):
    run(tmp_path, Doubling())
    other = Doubling()
    run(tmp_path, other, settings={"base": 3})
    assert len(other.asked) == 4
    back = Doubling()
    run(tmp_path, back, numbers=(4, 3, 9))
    assert back.asked == ["i9"]


def test_a_result_that_no_longer_holds_is_made_again(tmp_path):
    run(tmp_path, Doubling())
    again = Doubling()
    run(tmp_path, again, still_holds=lambda result: result["twice"] != 6)
    assert again.asked == ["i3"]


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(RequestError, match="An id occurs twice"):
        run(tmp_path, Doubling(), numbers=(1, 1))


def test_a_folder_has_one_writer(tmp_path):
    with only_writer(tmp_path / "new"), pytest.raises(RequestError, match="Another process is writing"):
        with only_writer(tmp_path / "new"):
            pass
    with only_writer(tmp_path / "new"):
        run(tmp_path / "new", Doubling())
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="It cannot be written"), only_writer(tmp_path / "file"):
        pass
