"""Guards over READMEs and docs: paths exist, links resolve, commands parse, published numbers come from runs."""

import importlib
import importlib.util
import json
import re
import shlex
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.main import get_command

from lightbox.claims.registry import choose_claims, installed_packages, load_papers
from lightbox.cli.app import app
from lightbox.paper import composition, multirun
from lightbox.report.readme import rewritten
from lightbox.site.claim_pages import page_text
from lightbox.site.documents import presets_of
from lightbox.site.walkthroughs import split_cells

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COPIED = re.compile(r"`(uv run [^`]+)`")
"""A whole command in running text, to be copied; a line may end inside."""
STANDS_FOR = {"NAME": "medthink", "ID": "T1", "experiment=ARM": "experiment=none", "modality=NAME": "modality=fundus"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
PATH_LIKE = re.compile(r"[\w.*{},-]+(?:/[\w.*{},-]+)*/?")
ENDINGS = (".py", ".md", ".yaml", ".toml", ".json", ".csv", ".lock", ".parquet", ".safetensors")
MADE_BY_RUNS = ("lightbox-out/", "results.json", "report.html", "job.json", "card.json", "scores.parquet")
KEY = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,}\b")
SHELLS = ("", "bash", "sh", "console", "shell")
CLICK = {"ray": "ray.scripts.scripts", "mlflow": "mlflow.cli"}
PASSED_ON = ("cd", "git", "export", "pip", "uv sync", "uv lock", "curl", "python -m pip", "apt-get install", "pg_dump")


def documents(files, root):
    return [path.relative_to(root) for path in files if path.suffix == ".md"]


def homes(document, root):
    """Folders that a path in this document may start from: its own, the root, the package it is about."""
    folder = (root / document).parent
    return [folder, root, root / "packages/core/src", root / "packages/core/src/lightbox", *folder.glob("src/*")]


def commands(text):
    """Shell commands of the fenced blocks, one per line, continued lines joined, prompts and comments removed."""
    for language, body in FENCE.findall(text):
        if language in SHELLS:
            for line in body.replace("\\\n", " ").splitlines():
                for command in line.strip().removeprefix("$ ").split(" && "):
                    words = shlex.split(command, comments=True)
                    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                        words = words[1:]
                    if words:
                        yield words[2:] if words[:2] == ["uv", "run"] else words


def spoken(text):
    """Whole commands in running text, as words; a name that stands for any is filled in."""
    for command in COPIED.findall(FENCE.sub("", text)):
        yield [STANDS_FOR.get(word, word) for word in shlex.split(command)[2:]]


def read_on_the_site(files, root):
    """Name and Markdown of every page of the site that has any: documents, walkthroughs, code with a docstring."""
    for path in documents(files, root):
        yield str(path), (root / path).read_text(encoding="utf-8")
    for path in files:
        if path.name == "walkthrough.py":
            texts = [cell.body for cell in split_cells(path.read_text(encoding="utf-8")) if cell.is_text]
            yield str(path.relative_to(root)), "\n\n".join(texts)
        elif path.name == "exercises.py":
            indented = re.findall(r"^ {4}(uv run .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            yield str(path.relative_to(root)), "\n".join(["```bash", *indented, "```"])
    for paper in installed_packages():
        presets = presets_of(root, paper)
        yield f"published claims of {paper}", page_text(paper, presets, root=root, folder=root / "docs")


def parse_words(root_command, words):
    """Parse with a real command line and run nothing; it raises where a command or an option does not exist."""
    context = root_command.make_context(words[0], list(words[1:]))
    rest = [*context._protected_args, *context.args]
    command, context = root_command, context
    names = []
    while hasattr(command, "resolve_command") and rest:
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
        context = command.make_context(name, list(rest), parent=context)
        rest = [*getattr(context, "_protected_args", []), *context.args]
    return names, context.params


def check_module(name, words):
    """What `python -m` would run: a module with a command line of its own, or a paper."""
    if "." not in name:
        check_overrides(installed_packages()[name], words[0], words[1:])
    elif hasattr(importlib.import_module(name), "command_line"):
        importlib.import_module(name).command_line().parse_args(words)
    else:
        parse_words(get_command(importlib.import_module(f"{name}.__main__").app), [name, *words])


def check_command(words):
    """Raise unless a shown command would be accepted."""
    packages = installed_packages()
    if words[0] == "lightbox":
        if "--help" in words or "--version" in words:
            return
        names, params = parse_words(get_command(app), words)
        if names[:1] in (["train"], ["evaluate"]):
            check_overrides(packages[params["paper"]], names[0], params["overrides"] or [])
        if names[:1] == ["reproduce"]:
            papers = load_papers(params.get("papers") or [])
            choose_claims(papers, [part for part in ",".join(params.get("claims") or ()).split(",") if part])
    elif words[0] == "python" and words[1:2] == ["-m"]:
        check_module(words[2], words[3:])
    elif words[:2] == ["accelerate", "launch"]:
        launcher = importlib.import_module("accelerate.commands.launch").launch_command_parser()
        given = launcher.parse_args(words[2:])
        assert given.module
        check_overrides(
            packages[given.training_script], *given.training_script_args[:1], given.training_script_args[1:]
        )
    elif words[:4] == ["python3", "-m", "pip", "install"]:
        return
    elif words[0] in CLICK:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # MLflow's, of its own type hints
            module = importlib.import_module(CLICK[words[0]])
        parse_words(module.cli, words)
    elif re.fullmatch(r"\w+-(train|eval)", words[0]):
        paper, _, verb = words[0].rpartition("-")
        check_overrides(packages[paper], verb, words[1:])
    else:
        check_program(words)


def check_program(words):
    """Raise unless a program that is not ours, and the files that it is given, are known."""
    if words[0] == "pytest":
        check_selection(words[1:])
    elif words[0] in ("python", "bash") and len(words) > 1:
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    elif words[0] in ("ruff", "lint-imports", "basedpyright"):
        assert words[0] == "ruff" or words[0] in entry_points(group="console_scripts").names
    elif "/" in words[0]:
        assert (ROOT / words[0]).is_file(), f"there is no {words[0]}"
    else:
        assert " ".join(words).startswith(PASSED_ON), f"nobody knows the command {words}"


def check_selection(arguments):
    """Raise unless the files and the marks that a call of pytest names exist."""
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "-m":
            known = re.findall(r'^  "(\w+): ', config, re.MULTILINE)
            assert set(re.findall(r"\w+", word)) - {"and", "or", "not"} <= set(known), f"nobody knows the mark {word}"
        elif before != "-k" and not word.startswith("-") and "/" in word:
            assert (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"


def check_overrides(package, verb, overrides):
    if multirun.is_multirun(overrides):
        settings = [word for word in overrides if word.startswith("hydra")]
        multirun.check_settings(settings)
        rest = [word for word in overrides if word not in (*multirun.FLAGS, *settings)]
        for job in multirun.combinations(rest):
            check_overrides(package, verb, job)
    elif verb == "train":
        composition.resolve(package, overrides)
    else:
        composition.resolve(package, overrides, is_trained=False)


def test_relative_links_resolve(files, root):
    dead = []
    for document in documents(files, root):
        text = FENCE.sub("", (root / document).read_text(encoding="utf-8"))
        for target in LINK.findall(text):
            place = target.partition("#")[0]
            if place and "://" not in target and not target.startswith("mailto:"):
                dead += [] if ((root / document).parent / place).exists() else [f"{document}: {target}"]
    assert dead == []


def test_paths_in_backticks_exist(files, root):
    missing, names = [], {path.name for path in files}
    tops = {path.relative_to(root).parts[0] for path in files}
    for document in documents(files, root):
        text = FENCE.sub("", (root / document).read_text(encoding="utf-8"))
        for span in SPAN.findall(text):
            looks = PATH_LIKE.fullmatch(span) and (span.endswith(ENDINGS) or "/" in span and span.split("/")[0] in tops)
            if not looks or span.startswith(MADE_BY_RUNS) or span.endswith(MADE_BY_RUNS):
                continue
            pattern = re.sub(r"\{[^}]*\}|\b[A-Z]{3,}\b", "*", span).rstrip("/") if "/" in span else span
            if span not in names and not any(any(home.glob(pattern)) for home in homes(document, root)):
                missing.append(f"{document}: {span}")
    assert missing == []


@pytest.mark.slow
def test_commands_on_every_page_are_accepted(files, root):
    refused, count = [], 0
    for page, text in read_on_the_site(files, root):
        for words in (*commands(text), *spoken(text)):
            count += 1
            try:
                check_command(words)
            except (Exception, SystemExit) as err:  # noqa: BLE001  a guard reports every refusal, whatever its kind
                refused.append(f"{page}: {' '.join(words)}: {type(err).__name__} {err}")
    assert refused == []
    assert count > 150


def test_generated_blocks_are_up_to_date(root):
    """Published numbers, settings and maps stand in blocks that `lightbox report --readmes` writes."""
    assert [str(path) for path in rewritten(root)] == []


def published(root):
    return sorted((root / "results").glob("*/*/results.json"))


def test_a_paper_with_published_results_shows_them_in_its_readme(root):
    for path in published(root):
        paper, preset = path.parts[-3:-1]
        # what the core claims is about pruning, and told there
        page = root / "docs" / "pruning.md" if paper == "core" else root / "projects" / paper / "README.md"
        assert f"<!-- results: {paper}/{preset} -->" in page.read_text(encoding="utf-8")


def test_no_readme_holds_the_key_of_a_run(files, root):
    """Keys stand in results.json; a commit is named by seven digits, so that it does not read like one."""
    readmes = [path for path in files if path.name == "README.md"]
    assert len(readmes) > 3
    assert [f"{path}: {key}" for path in readmes for key in KEY.findall(path.read_text(encoding="utf-8"))] == []


def test_every_published_verdict_has_runs_and_every_run_a_row(root):
    for path in published(root):
        rows = (root / "results" / "runs.csv").read_text(encoding="utf-8")
        for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]:
            runs = claim["run_ids"]
            assert runs or claim["verdict"] == "no verdict", f"{path}: {claim['id']} has a verdict and no runs"
            assert [run for run in runs if run not in rows] == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("lightbox reproduc medthink", "No such command 'reproduc'"),
        ("lightbox reproduce --presett quick", "No such option: --presett"),
        ("lightbox reproduce medthink --claims T99", "T99"),
        ("lightbox train medthink optim.lrr=1", "optim.lrr"),
        ("python -m medthink train preset=huge", "preset=huge"),
        ("python -m mmedpo.curation --source phantom --modell tiny/llava", "No such option: --modell"),
        ("medthink-train optim.lrr=1", "optim.lrr"),
        ("python -m medthink train --multirun preset=smoke optim.lrr=1,2", "optim.lrr"),
        ("python -m medthink train -m preset=smoke hydra/launcher=slurm", "hydra/launcher=slurm"),
        ("accelerate launch --num_processes 2 -m medthink train optim.lrr=1", "optim.lrr"),
        ("ray start --headd", "No such option"),
        ("mlflow server --backend-store postgresql://host/mlflow", "No such option"),
        ("frobnicate --all", "nobody knows"),
        ("python projects/medthink/walkthru.py figures", "there is no projects/medthink/walkthru.py"),
        ("pytest -m slwo", "nobody knows the mark slwo"),
        ("pytest tests/medthink/test_exercise.py -k right", "there is no tests/medthink/test_exercise.py"),
    ],
)
def test_the_guard_over_commands_refuses_wrong_ones(line, reason):
    with pytest.raises(Exception, match=reason):
        check_command(line.split())


def test_commands_are_found_in_running_text():
    text = "Run `uv run lightbox\ndoctor --json`, which is `lightbox doctor`.\n\n```bash\n`lightbox no`\n```\n"
    assert list(spoken(text)) == [["lightbox", "doctor", "--json"]]


def test_commands_are_found_in_fenced_blocks():
    text = "```bash\nA=1 uv run lightbox doctor \\\n  --json  # facts\n```\n```python\nlightbox = 1\n```"
    assert list(commands(text)) == [["lightbox", "doctor", "--json"]]
