"""What the doctor sees and says, and the machine facts behind it."""

import json
import platform
import sqlite3
import subprocess
import sys
from contextlib import closing
from hashlib import sha256

import pytest

from lightbox import machine, paths
from lightbox.cli import doctor
from lightbox.errors import RequestError


def by_name(checks):
    return {check.name: check for check in checks}


@pytest.fixture
def weights(tmp_path):
    """A folder of weights with one sound model."""
    model = tmp_path / "weights" / "tower"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "card.json").write_text(json.dumps({"sha256": {"model.safetensors": sha256(b"weights").hexdigest()}}))
    return model.parent


def git(folder, *arguments):
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_doctor_prints_json_and_imports_no_torch():
    code = (
        "import sys; sys.argv[0] = 'lightbox'\nfrom lightbox.cli import main\n"
        "try:\n    main(['doctor', '--json'])\n"
        "finally:\n    assert not {'torch', 'transformers', 'mlflow'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "heavy import" not in done.stderr
    shown = json.loads(done.stdout)
    checks = {check["name"]: check for check in shown["checks"]}
    assert shown["versions"]["torch"].startswith("2.10")
    assert checks["papers"]["found"] == "core, k2sight, medplib, medthink, mmedpo, vitar"
    assert checks["torch"]["state"] == "ok"
    assert done.returncode == any(check["state"] == "broken" for check in checks.values())


def test_everything_that_is_not_ok_says_what_it_costs():
    checks = list(doctor.look())
    assert len(checks) > 15
    assert [check.name for check in checks if check.state != "ok" and not check.cost] == []


def test_sound_weights_pass(weights):
    assert by_name(doctor.look_weights(weights))["weights tower"].state == "ok"


@pytest.mark.parametrize("damage", [b"weightz", None])
def test_damaged_or_absent_weights_are_broken_and_named(weights, damage):
    file = weights / "tower" / "model.safetensors"
    file.unlink() if damage is None else file.write_bytes(damage)
    check = by_name(doctor.look_weights(weights))["weights tower"]
    assert check.state == "broken"
    assert "model.safetensors" in check.found


def test_a_card_without_digests_and_a_folder_without_cards_are_broken(weights, tmp_path):
    (weights / "tower" / "card.json").write_text("{}")
    assert by_name(doctor.look_weights(weights))["weights tower"].state == "broken"
    assert by_name(doctor.look_weights(tmp_path / "absent"))["weights"].state == "broken"


def test_data_root_names_the_sets_that_are_there(tmp_path, monkeypatch):
    cards, root = tmp_path / "cards", tmp_path / "root"
    for folder in (cards, root / "slake"):
        folder.mkdir(parents=True)
    for name in ("slake", "vqa_rad", "phantom"):
        (cards / f"{name}.yaml").write_text("")
    monkeypatch.delenv("LIGHTBOX_DATA_ROOT", raising=False)
    assert doctor.look_data(cards).state == "missing"
    monkeypatch.setenv("LIGHTBOX_DATA_ROOT", str(root))
    assert (doctor.look_data(cards).state, doctor.look_data(cards).found) == ("ok", "slake")
    (root / "slake").rename(root / "other")
    assert doctor.look_data(cards).state == "missing"
    monkeypatch.setenv("LIGHTBOX_DATA_ROOT", str(root / "absent"))
    assert doctor.look_data(cards).state == "broken"


def test_run_index_is_counted_absent_or_broken(tmp_path, monkeypatch):
    database = tmp_path / "mlflow.db"
    assert doctor.look_index(database).state == "ok"
    with closing(sqlite3.connect(database)) as base:
        base.execute("CREATE TABLE runs (run_uuid TEXT)")
        base.execute("CREATE TABLE alembic_version (version_num TEXT)")
        base.execute("INSERT INTO runs VALUES ('a')")
        base.execute("INSERT INTO alembic_version VALUES ('abc123')")
        base.commit()
    assert "1 runs, schema abc123" in doctor.look_index(database).found
    database.write_bytes(b"not a database, but long enough to be read as one" * 10)
    assert doctor.look_index(database).state == "broken"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert "http://localhost:5000" in doctor.look_index(database).found


def test_commit_is_marked_dirty_when_a_tracked_file_differs(tmp_path):
    assert machine.commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    clean = machine.commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "untracked").write_text("b")
    assert machine.commit(tmp_path) == clean
    (tmp_path / "file").write_text("b")
    assert machine.commit(tmp_path) == f"{clean}-dirty"


def test_published_results_do_not_make_a_commit_dirty(tmp_path):
    git(tmp_path, "init", "-q")
    for name in ("results", "source"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = machine.commit(tmp_path)
    (tmp_path / "results" / "file").write_text("b")
    assert machine.commit(tmp_path) == clean
    (tmp_path / "source" / "file").write_text("b")
    assert machine.commit(tmp_path) == f"{clean}-dirty"


def test_versions_tell_what_is_not_installed():
    found = machine.versions(("numpy", "surely-not-installed"))
    assert found["numpy"].startswith("2.")
    assert found["surely-not-installed"] == ""


def test_free_disk_is_known_for_a_folder_that_does_not_exist_yet(tmp_path):
    assert machine.free_disk_gib(tmp_path / "a" / "b") == pytest.approx(machine.free_disk_gib(tmp_path), rel=0.01)
    assert machine.cores() >= 1
    assert f"{machine.cores()} cores" in machine.hardware()


def test_repo_root_follows_the_variable_then_the_current_folder_then_the_package(tmp_path, monkeypatch):
    package_root = paths.repo_root()
    assert (package_root / "packages").is_dir()
    (tmp_path / "here" / "shared_data").mkdir(parents=True)
    (tmp_path / "here" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "here" / "below")
    assert paths.repo_root() == tmp_path / "here"
    assert paths.shared_data() == tmp_path / "here" / "shared_data"
    monkeypatch.setenv("LIGHTBOX_HOME", str(package_root))
    assert paths.results_dir() == package_root / "results"
    monkeypatch.setenv("LIGHTBOX_HOME", str(tmp_path))
    with pytest.raises(RequestError, match="LIGHTBOX_HOME"):
        paths.repo_root()


@pytest.mark.slow
def test_deep_look_tries_every_dtype_on_the_device():
    checks = by_name(doctor.look_deep())
    device = checks["torch device"].found.split(",")[0]
    assert {checks[f"{dtype} on {device}"].state for dtype in ("float32", "bfloat16", "float16")} <= {"ok", "missing"}
    assert checks["4-bit weights"].state == "ok"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("AMD EPYC", "AMD EPYC (family 25, model 1)"), ("Xeon(R) Platinum 8370C", "Xeon(R) Platinum 8370C"), ("", None)],
)
def test_a_processor_without_a_number_is_told_apart_by_family_and_model(tmp_path, name, shown):
    first = f"processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: {name}\n"
    (tmp_path / "cpuinfo").write_text(first + "\nprocessor\t: 1\nmodel\t\t: 7\n")
    assert machine.cpu_name(tmp_path / "cpuinfo") == (shown or platform.processor() or platform.machine())
