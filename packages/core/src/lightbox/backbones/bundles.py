"""A shipped tiny model as a versioned folder in the layout of a MONAI bundle: metadata, weights, card, licence.

`shared_data/bundles.yaml` says what a person has to say of a model: title, version, what changed, what goes in and
comes out. The rest is read from the model's own card, whose digests are checked on the way. MONAI reads
`configs/metadata.json` (`monai.bundle.ConfigParser.read_meta`); the weights are in transformers' layout, which MONAI's
own loaders do not open. No torch.
"""

import json
import shutil
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lightbox.backbones import weights
from lightbox.errors import RequestError
from lightbox.paths import repo_root, shared_data

DESCRIPTIONS = "bundles.yaml"
PACKAGES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
BESIDE = ("safetensors", "tokenizers", "transformers")
AUTHORS = "The Lightbox authors"


@dataclass(frozen=True)
class Description:
    """What `bundles.yaml` says of one model.

    Args:
        title, task, description: for a reader.
        version: of the bundle, three numbers with points.
        changelog: what each version changed, the newest last.
        weights: digest of the files that this version is, as `backbones.weights.digest_of` gives it.
        inputs, outputs: tensors by name, in MONAI's terms.
    """

    title: str
    task: str
    description: str
    version: str
    changelog: dict[str, str]
    weights: str
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]


def read_descriptions(path: Path | None = None) -> dict[str, Description]:
    """Descriptions by name of the model; `path` None is the checkout's.

    Raises:
        RequestError: for a file that is no such table, a missing or unknown field, or a version without its change.
    """
    path = path or shared_data() / DESCRIPTIONS
    do = f"Correct the file; the fields are {', '.join(field.name for field in fields(Description))}"
    try:
        read = {name: Description(**row) for name, row in yaml.safe_load(path.read_text(encoding="utf-8")).items()}
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as err:
        raise RequestError(f"The descriptions of bundles are {path}", str(err), do) from err
    for name, own in read.items():
        if list(own.changelog)[-1:] != [own.version]:
            why = f"'{name}' is version {own.version}, and the last of its changelog is {list(own.changelog)[-1:]}"
            raise RequestError(f"The descriptions of bundles are {path}", why, "Say what that version changed, last")
    return read


def write_bundle(name: str, out: Path) -> Path:
    """Write a tiny model as a bundle.

    Args:
        name: with or without "tiny/".
        out: new folder; `tower-1.0.0` is made in it where it is there.

    Returns:
        The bundle's folder: `configs/metadata.json`, `models/`, `docs/README.md`, `LICENSE`.

    Raises:
        RequestError: for a model that is not described, a folder that is there, or files of another version.
        WorkError: where a file is not the one on the model's card.
    """
    short = name.removeprefix("tiny/")
    described = read_descriptions()
    if short not in described:
        raise RequestError(f"NAME is '{name}'", f"The shipped models are {', '.join(described)}", "Name one of them")
    own, folder = described[short], shared_data() / "weights" / short
    card = weights.check_card(folder)
    check_version(short, own)
    target = out / f"{short}-{own.version}"
    if target.exists():
        raise RequestError(f"The bundle is '{target}'", "It is there already, and nothing is replaced", "Remove it")
    (target / "docs").mkdir(parents=True)
    (target / "configs").mkdir()
    (target / "models").mkdir()
    for file in (*card["sha256"], weights.CARD):
        shutil.copyfile(folder / file, target / "models" / file)
    shutil.copyfile(repo_root() / "LICENSE", target / "LICENSE")
    text = json.dumps(metadata(own, card), indent=2, ensure_ascii=False)
    (target / "configs" / "metadata.json").write_text(text + "\n", encoding="utf-8")
    (target / "docs" / "README.md").write_text(readme(own, card), encoding="utf-8")
    return target


def check_version(name: str, own: Description) -> None:
    """Refuse a model whose files are not those that the newest version names.

    Raises:
        RequestError: saying both digests.
    """
    actual = weights.digest_of(f"tiny/{name}")
    if actual != own.weights:
        why = f"Version {own.version} is {own.weights[:12]}, the files are {actual[:12]}"
        do = f"Raise its version in shared_data/{DESCRIPTIONS}, say what changed, and set its weights to {actual}"
        raise RequestError(f"The weights of tiny/{name}", why, do)


def metadata(own: Description, card: dict[str, Any]) -> dict[str, Any]:
    """`metadata.json`: MONAI's fields, and from the model's card what it learnt from and how good it is."""
    return {
        "name": own.title,
        "version": own.version,
        "changelog": own.changelog,
        **{field: version(package) for field, package in PACKAGES.items()},
        "required_packages_version": {package: version(package) for package in BESIDE},
        "task": own.task,
        "description": own.description,
        "authors": AUTHORS,
        "copyright": f"{AUTHORS}, {card['licence']}",
        "license": card["licence"],
        "intended_use": card["use"],
        "data_source": f"Drawn by Lightbox's phantom, generator {card['data']['generator']}; no image of a patient",
        "saw": card["saw"],
        "must_not_see": card["must_not_see"],
        "eval_metrics": card["scores"],
        "parameters": card["parameters"],
        "sha256": card["sha256"],
        "network_data_format": {"inputs": own.inputs, "outputs": own.outputs},
    }


def readme(own: Description, card: dict[str, Any]) -> str:
    """A model card in Markdown."""
    scores = "\n".join(f"| `{name}` | {score:g} |" for name, score in card["scores"].items())
    changes = "\n".join(f"- {number}: {what}" for number, what in own.changelog.items())
    return f"""# {own.title}

{own.description}

**Intended use.** {card["use"]}

**Learnt from** {card["saw"]}. **Must not have seen** {card["must_not_see"]}.

**Recipe** `{json.dumps(card["recipe"])}`, built in {card["build_minutes"]} minutes. {card["parameters"]:,} parameters.
Open it with transformers: `from_pretrained("models")`.

| score on validation drawings | |
|---|---|
{scores}

**Licence** {card["licence"]}; the text is in `LICENSE`.

## Versions

{changes}
"""
