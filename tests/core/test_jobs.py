import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import lightbox
from lightbox.claims.jobs import plan
from lightbox.claims.registry import check_claims, check_preset, choose_claims, load_papers
from lightbox.claims.spec import Arm
from lightbox.errors import RequestError
from lightbox.runs import key, sources
from lightbox.runs.key import OLDER, differences, identify
from lightbox.runs.sources import closure, whole_digest
from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper


@pytest.fixture
def toy(tmp_path):
    """Folder of the package `toy`, importable during the test."""
    write_toy_paper(tmp_path)
    yield tmp_path / "toy"
    forget_toy_paper(tmp_path)


def papers(names=()):
    return load_papers(names, packages={"toy": "toy"})


def planned(preset="quick", ids=()):
    return plan(choose_claims(papers(), ids), preset)


def keys_of(found, arm):
    return {found.keys["toy", arm, seed] for seed in range(5)}


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_plan_has_one_job_for_each_arm_and_seed_with_needs_first(toy):
    found = planned()
    assert len(found.jobs) == 5 * 5
    order = list(found.jobs)
    for seed in range(5):
        needs = found.jobs[found.keys["toy", "twice", seed]].needs
        assert needs == {"true": found.keys["toy", "true", seed]}
        assert order.index(needs["true"]) < order.index(found.keys["toy", "twice", seed])
    assert [job.seed for job in found.jobs.values()] == sorted(job.seed for job in found.jobs.values())


def test_claims_share_jobs_and_one_claim_plans_only_its_arms_and_their_needs(toy):
    assert {job.arm for job in planned(ids=["Y1"]).jobs.values()} == {"none", "true", "filler", "majority"}
    assert set(planned(ids=["Y1"]).jobs) < set(planned().jobs)
    assert planned(ids=["Y2"]).scored_keys() <= set(planned().jobs)


def test_job_only_needed_by_another_is_run_and_not_scored(toy):
    links = 'difference("twice minus true", "twice", "true"), difference("true minus none", "true", "none")'
    rewrite(toy / "claims.py", links, 'difference("twice minus none", "twice", "none"),')
    rewrite(toy / "claims.py", 'Measure("none"), Measure("true")', 'Measure("none"), Measure("twice")')
    found = planned(ids=["Y2"])
    assert {job.arm for job in found.jobs.values()} == {"twice", "none", "majority", "true"}
    assert keys_of(found, "true").isdisjoint(found.scored_keys())


def test_arms_with_one_configuration_are_one_job(toy):
    rewrite(toy / "claims.py", '"filler of equal length", ("level=0.61",)', '"filler", ("level=0.60",)')
    found = planned()
    assert len(found.jobs) == 4 * 5
    assert keys_of(found, "filler") == keys_of(found, "none")


def test_overrides_give_preset_and_seed_and_then_the_arm(toy):
    found = planned("smoke")
    job = found.jobs[found.keys["toy", "true", 0]]
    assert job.overrides == ("preset=smoke", "run.seed=0", "experiment=true", "level=0.72")
    five = planned()
    assert five.jobs[five.keys["toy", "true", 3]].overrides[1] == "run.seed=3"
    assert five.jobs[five.keys["toy", "true", 3]].config["run"]["seed"] == 3


def test_claim_that_does_not_run_at_the_preset_is_skipped_and_listed(toy):
    assert [claim.id for claim in planned().skipped] == ["Y3"]
    assert [claim.id for _, claim in planned("full").claims] == ["Y3"]


def test_each_arm_is_composed_once_whatever_the_number_of_seeds(toy):
    planned()
    assert len(sys.modules["toy.config"].CALLS) == 5


@pytest.mark.slow
def test_plan_of_a_hundred_jobs_takes_less_than_three_seconds_with_slow_configurations(toy):
    """12 arms of 8 seeds, each configuration slowed to the 100 ms that Hydra takes."""
    names = [f"arm{i}" for i in range(12)]
    arms = "".join(f'\nARMS["{n}"] = Arm("{n}", "{n}", ("level=0.{i + 10}",))' for i, n in enumerate(names))
    rewrite(toy / "claims.py", "GATE = Gate(", f"{arms}\nGATE = Gate(")
    links = ", ".join(f'difference("{n}", "true", "{n}")' for n in names[1:])
    rewrite(toy / "claims.py", 'difference("twice minus true", "twice", "true"),', f"{links},")
    rewrite(toy / "claims.py", 'presets=("smoke", "quick"))', 'presets=("quick",), seeds={"quick": 8, "full": 8})')
    rewrite(toy / "config.py", "    CALLS.append", "    import time\n\n    time.sleep(0.1)\n    CALLS.append")
    begun = time.perf_counter()
    found = planned(ids=["Y2"])
    assert len(found.jobs) >= 100
    assert time.perf_counter() - begun < 3


@pytest.mark.slow
def test_key_is_twenty_hex_digits_and_the_same_in_another_process(toy):
    own = next(iter(planned().jobs))
    code = (
        f"import sys; sys.path.insert(0, {str(toy.parent)!r})\n"
        "from lightbox.claims import jobs, registry\n"
        "papers = registry.load_papers(packages={'toy': 'toy'})\n"
        "print(next(iter(jobs.plan(registry.choose_claims(papers), 'quick').jobs)))\n"
        "assert not {'torch', 'transformers', 'mlflow'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == own
    assert len(own) == 20
    assert int(own, 16) >= 0


BASE = {"run": {"seed": 1, "out": ""}, "optim": {"lr": 0.1}, "tuned": {"a": 0.1}, "needs": ["x"]}


def key_of(config=BASE, **changes):
    parts = {"inputs": {"w": "a"}, "needs": {}} | changes
    return identify("toy", config, **parts).key


@pytest.mark.parametrize(
    "config",
    [
        *(BASE | {"run": BASE["run"] | {name: "changed"}} for name in ("out", "preset", "resume")),
        *(BASE | {"run": BASE["run"] | {name: 7}} for name in ("save_every_steps", "log_every_steps")),
        BASE | {"tuned": {"a": 0.2, "b": 0.3}},
        BASE | {"needs": ["elsewhere"]},
    ],
)
def test_key_ignores_what_cannot_change_scores(toy, config):
    assert key_of(config) == key_of()


@pytest.mark.parametrize(
    "change",
    [
        {"config": BASE | {"run": {"seed": 2}}},
        {"config": BASE | {"optim": {"lr": 0.2}}},
        {"config": BASE | {"run": {"seed": 1, "threads": 2}}},
        {"inputs": {"w": "b"}},
        {"needs": {"true": "0" * 20}},
    ],
)
def test_key_changes_with_everything_that_can_change_scores(toy, change):
    assert key_of(**change) != key_of()


def test_key_changes_with_the_version_of_what_computes(toy, monkeypatch):
    before = key_of()
    monkeypatch.setattr(key, "computing_versions", lambda libraries: {"torch": "9.9"})
    assert key_of() != before


def record_of(identity, config=BASE):
    """`job.json` of a finished run, as far as it says what the run was made from."""
    return identity.record | {"config": config}


def test_what_changed_since_a_finished_run_is_said(toy):
    made = identify("toy", BASE, inputs={"data": "a"}, needs={"true": "k"})
    record = record_of(made)
    assert differences(record, made) == []
    rewrite(toy / "world.py", "return cfg.level", "return cfg.level * 1.0")
    (toy / "extra.py").write_text("x = 1\n")
    rewrite(toy / "train.py", "STEPS = 4", "import toy.extra\n\nSTEPS = 4")
    now = identify("toy", BASE | {"optim": {"lr": 0.2}}, inputs={"data": "b"}, needs={"true": "l"})
    assert differences(record, now) == [
        "optim.lr 0.1 -> 0.2",
        "module toy.extra is new",
        "module toy.train changed",
        "module toy.world changed",
        "input data changed",
        "the run of arm true changed",
    ]
    assert differences({"config": BASE}, now) == [OLDER]


def digest_after(path, old, new):
    before = whole_digest("toy")
    rewrite(path, old, new)
    return before, whole_digest("toy")


def test_digest_changes_with_code(toy):
    before, after = digest_after(toy / "world.py", "return cfg.level", "return cfg.level * 1.0")
    assert before != after


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # between 0 and 1", ""),
        ("How often an arm is right", "Its share of right answers"),
        ("A module of the paper", "One module"),
        ("    return cfg.level", "\n\n    return (\n        cfg.level\n    )"),
    ],
)
def test_digest_keeps_under_changed_comments_docstrings_and_layout(toy, old, new):
    before, after = digest_after(toy / "world.py", old, new)
    assert before == after


def test_digest_keeps_where_only_a_string_under_a_field_changes(toy):
    (toy / "config.py").write_text(
        (toy / "config.py").read_text().replace("level: float", 'level: float\n    """A."""')
    )
    before, after = digest_after(toy / "config.py", '"""A."""', '"""B."""')
    assert before == after


def test_digest_sees_a_string_that_is_data(toy):
    (toy / "world.py").write_text('def f():\n    """Doc."""\n    return "a"\n')
    before, after = digest_after(toy / "world.py", '"a"', '"b"')
    assert before != after


def test_digest_keeps_with_what_no_run_reaches_and_changes_with_what_one_does(toy):
    before = whole_digest("toy")
    (toy / "conf.yaml").write_text("a: 1\n")
    rewrite(toy / "claims.py", "A true rationale helps", "It helps")
    (toy / "cli.py").write_text((toy / "cli.py").read_text() + "\nx = 1\n")
    (toy / "predict.py").write_text("x = 1\n")
    assert whole_digest("toy") == before
    (toy / "__init__.py").write_text("x = 1\n")  # importing the package runs it
    assert whole_digest("toy") != before


def test_digest_follows_core_imports_and_leaves_out_what_only_runs_jobs(toy, monkeypatch):
    core = toy.parent / "core" / "lightbox"
    for name, text in {
        "__init__.py": "__version__ = '1'",
        "alpha/__init__.py": "",
        "alpha/used.py": "def f():\n    from ..beta import late\n",
        "beta/__init__.py": "",
        "beta/late.py": "x = 1",
        "beta/unused.py": "x = 1",
        "claims/__init__.py": "",
        "claims/runner.py": "x = 1",
    }.items():
        (core / name).parent.mkdir(parents=True, exist_ok=True)
        (core / name).write_text(text)
    (toy / "world.py").write_text("from lightbox.alpha import used\nimport lightbox.claims.runner\n")
    monkeypatch.setattr(lightbox, "__file__", str(core / "__init__.py"))
    sources._parsed.cache_clear()
    for name, is_seen in {
        "alpha/__init__.py": True,  # runs before alpha.used does
        "alpha/used.py": True,
        "beta/late.py": True,  # imported inside a function, relatively
        "beta/unused.py": False,
        "claims/runner.py": False,
        "__init__.py": True,
    }.items():
        before = whole_digest("toy")
        (core / name).write_text((core / name).read_text() + "\nmore = 2\n")
        assert (whole_digest("toy") != before) == is_seen, name


def test_what_only_some_configurations_call_is_followed_where_it_is_chosen():
    plain = closure("medthink")
    assert "lightbox.backbones.llava" not in plain
    chosen = ("lightbox.backbones.loading", "lightbox.backbones.llava")
    assert closure("medthink", chosen).keys() - plain.keys() >= set(chosen)
    assert "lightbox.backbones.qwen_vl" not in closure("medthink", chosen)


def test_every_exception_names_modules_that_there_are():
    root = Path(lightbox.__file__).parent

    def exists(module):
        path = root.joinpath(*module.split(".")[1:])
        return path.with_suffix(".py").is_file() or path.is_dir()

    every = [*sources.OUTSIDE, *sources.CHOICES, *(name for names in sources.CHOICES.values() for name in names)]
    assert [module for module in every if not exists(module)] == []


def test_modules_that_decide_a_job_of_medthink():
    """A T5 on phantoms: what is on this list makes its jobs run again when its code changes, and nothing else does."""
    listed = (Path(__file__).parent / "medthink_modules.txt").read_text().split()
    assert list(closure("medthink")) == listed
    assert len(listed) <= 76  # 75 before runs could be pruned: `paper.pruned`, which does nothing where they are not


def test_a_paper_without_its_roots_is_refused(toy):
    (toy / "evaluate.py").unlink()
    with pytest.raises(RequestError, match="has no module 'evaluate', which its runs are made by"):
        closure("toy")


def test_digest_of_a_file_that_does_not_parse_names_it(toy):
    (toy / "world.py").write_text("def f(:\n")
    with pytest.raises(RequestError, match=r"world\.py\. It does not parse"):
        whole_digest("toy")


def test_digest_of_a_package_that_is_not_there_says_so():
    with pytest.raises(RequestError, match="The package 'nowhere'. No such package"):
        whole_digest("nowhere")


def test_unknown_paper_claim_and_preset_list_the_known_ones(toy):
    with pytest.raises(RequestError, match=r"no paper 'tyo'\. The known ones are: toy\. Did you mean toy\?"):
        papers(["tyo"])
    with pytest.raises(RequestError, match=r"no claim 'Y9'\. The known ones are: Y1, Y2, Y3"):
        choose_claims(papers(), ["Y1", "Y9"])
    with pytest.raises(
        RequestError, match=r"no preset 'quik'\. The known ones are: full, quick, smoke\. Did you mean quick"
    ):
        check_preset("quik", choose_claims(papers()))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('needs=("true",)', 'needs=("absent",)', "needs.*absent"),
        (
            'Arm("true", "true rationale", ("level=0.72",))',
            'Arm("true", "t", needs=("twice",))',
            "true -> twice -> true",
        ),
        ('id="Y2"', 'id="Y1"', "claim ids Y1, Y1"),
        ('"twice minus true", "twice"', '"twice minus true", "nobody"', "reads.*nobody"),
        ("kind=Kind.CHAIN", "kind=Kind.PATTERN", "2 primary contrasts"),
        ('"twice minus true"', '"true minus none"', "A name is used twice"),
        ("kind=Kind.CHAIN", "kind=Kind.CHAIN, bound=1.0", "Exact has a bound"),
        ('presets=("full",)', 'presets=("paper",)', "says no number"),
        ("Role.CONTROL),\n    ),\n    is_primary", "Role.CONTROL),\n    )[1:],\n    is_primary", "without a primary"),
    ],
)
def test_claims_that_contradict_themselves_are_refused(toy, old, new, message):
    rewrite(toy / "claims.py", old, new)
    with pytest.raises(RequestError, match=message):
        papers()


def test_a_paper_has_one_training_budget(toy):
    declared = papers()[0].claims
    two = tuple(replace(claim, budget=f"optim.axis_{claim.id}") for claim in declared.claims[:2])
    with pytest.raises(RequestError, match="budgets optim.axis_Y1, optim.axis_Y2. A pilot has one ladder"):
        check_claims(replace(declared, claims=two))
    assert declared.budget == ""
    assert replace(declared, claims=(declared.claims[0], two[1])).budget == "optim.axis_Y2"


def test_an_arm_depends_on_the_budget_if_it_is_trained_or_needs_one_that_is(toy):
    declared = papers()[0].claims
    reader = Arm("reader", "reads what was trained", needs=("true",), is_trained=False)
    assert replace(declared, arms=declared.arms | {"reader": reader}).budgeted == {
        "none",
        "true",
        "filler",
        "twice",
        "reader",
    }


def test_arm_under_another_name_is_refused(toy):
    declared = papers()[0].claims
    with pytest.raises(RequestError, match="arm 'true' under the name 'other'"):
        check_claims(replace(declared, arms={"other": declared.arms["true"]}))


def test_installed_papers_have_a_package_that_lies_in_the_workspace():
    for paper in load_papers():
        assert Path(__file__).parents[2] in Path(sys.modules[f"{paper.package}.claims"].__file__).parents
