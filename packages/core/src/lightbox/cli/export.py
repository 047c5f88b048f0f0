"""`lightbox export`: a trained adapter as a folder that other software reads, with processor and model card.

Without --merge it is what plain peft loads on the base, with it a whole model that plain transformers loads.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from lightbox.adapters.manifest import CARD, MANIFEST, read_adapter, staged_folder, write_manifest
from lightbox.backbones import weights
from lightbox.backbones.preflight import ADAPTER
from lightbox.config import check_choice
from lightbox.errors import RequestError
from lightbox.paper.pretrained import Pretrained, find_pretrained
from lightbox.paper.purpose import PURPOSE
from lightbox.runs import folders

DTYPES = ("bf16", "fp16", "fp32")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of an adapter.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")],
    merge: Annotated[bool, typer.Option("--merge", help="Write a whole model, base and adapter in one.")] = False,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32 of a merged model.")] = "bf16",
) -> None:
    """Write a trained adapter as a folder for peft, or with --merge as a model for transformers, vLLM or llama.cpp.

    The base is loaded in 16 or 32 bit to merge, however it was stored in training: rounding what was merged to 4 bit
    again would lose what was learned. A LoftQ adapter repairs the error of 4 bit, so its base is what that came to.
    """
    check_choice("--dtype", dtype, DTYPES)
    folder = adapter_folder(run)
    if out.exists():
        raise RequestError(
            f"DIR is '{out}'", "It is there already, and an export replaces nothing", "Name a new folder"
        )
    if not (folder / ADAPTER).is_file():
        raise RequestError(
            f"RUN is '{run}', with a whole model and no adapter", "That is in transformers' layout", f"Copy '{folder}'"
        )
    base = find_pretrained(str(folder))  # refuses where the base is not here
    if merge:
        _write_merged(folder, base, out, dtype)
    else:
        _write_adapter(folder, base, out)
    record = read_adapter(folder)
    (out / CARD).write_text(card(out.name, base, record, folders.read_run(run), is_merged=merge), encoding="utf-8")
    typer.echo(f"{out}: {'a merged model, ' + dtype if merge else 'an adapter'} on {base.name}")


def adapter_folder(run: Path) -> Path:
    """The folder with the weights of a run, or the one that is named itself.

    Raises:
        RequestError: a run that is not finished or kept no model, or a folder that is neither run nor adapter.
    """
    if (run / folders.RECORD).is_file():
        if folders.finished_run(run) and (run / folders.MODEL).is_dir():
            return run / folders.MODEL
        raise RequestError(f"RUN is '{run}'", "That run kept no model", "Name a training, from 'lightbox train'")
    if any((run / name).is_file() for name in (MANIFEST, ADAPTER)):
        return run
    raise RequestError(
        f"RUN is '{run}'",
        f"It holds neither {folders.RECORD} of a finished run nor {ADAPTER} of an adapter",
        "Name a run under lightbox-out/runs, or the folder of an adapter",
    )


def card(name: str, base: Pretrained, record: dict[str, Any], run: folders.Run | None, *, is_merged: bool) -> str:
    """The text of the model card.

    Args:
        name: of the new folder.
        base: the model under the adapter.
        record: see `read_adapter`.
        run: where it was trained, as far as that is known.
        is_merged: a whole model, not an adapter.
    """
    trained, tokens = record["adapter"], record["new_tokens"]
    additions = f"LoRA of rank {trained['r']}, alpha {trained['alpha']:g}, on `{trained['targets']}`"
    whole = [f"`{module}`" for module in trained.get("modules", ())]
    whole += ["the projector"] if trained.get("projector") == "full" else []
    rows = [
        ("base", f"{base.name} {base.revision}".strip()),
        ("digest of the base's weights", record["base"]["digest"]),
        ("stored in training as", record["quant"]),
        ("trained", additions + (" and the projector" if trained.get("projector") == "lora" else "")),
        ("trained as a whole", ", ".join(whole)),
        ("new tokens", ", ".join(f"`{token}`" for token in tokens)),
    ]
    if run is not None:
        data = run.config.get("data", {})
        rows += [
            ("paper and arm", f"{run.paper}, {run.arm}, seed {run.seed}, preset {run.preset}"),
            ("data", f"{data.get('source', '')}, {data.get('n_train', '')} items at most".strip(", ")),
            ("code", run.commit),
        ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows if value)
    kind = "A whole model: the base with what was trained in it." if is_merged else "An adapter for the base below."
    return f"""---
base_model: {json.dumps(base.name)}
library_name: {"transformers" if is_merged else "peft"}
tags: [lora, medical, lightbox]
---

# {name}

{kind} Written by `lightbox export`.

| | |
|---|---|
{table}

## Intended use

Research and teaching. Not for clinical use: nothing here was tested for decisions about patients. The licences of the
base and of the data apply to this folder too.
"""


def _write_adapter(folder: Path, base: Pretrained, out: Path) -> None:
    """A copy of the adapter with the base's processor, which its own tokenizer replaces where it has one."""
    import transformers

    place = weights.locate(base.name, revision=base.revision)
    processor_class = transformers.AutoProcessor if base.has_own_tower else transformers.AutoTokenizer
    shared = {"revision": place.revision} if place.revision else {}
    with staged_folder(out, "adapter") as staged:
        processor_class.from_pretrained(place.source, trust_remote_code=False, **shared).save_pretrained(staged)
        shutil.copytree(folder, staged, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, CARD))
        settings = json.loads((staged / ADAPTER).read_text(encoding="utf-8"))
        settings |= {"base_model_name_or_path": place.source, "revision": place.revision}
        (staged / ADAPTER).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        record = read_adapter(folder)
        if record["format"] is not None:  # what plain peft does not say, a manifest could not
            facts = {key: value for key, value in record.items() if key not in ("kind", "files", "versions")}
            write_manifest(staged, "adapter", facts)


def _write_merged(folder: Path, base: Pretrained, out: Path, dtype: str) -> None:
    from lightbox.adapters import artifact
    from lightbox.adapters.merge import merge_to_16_bit

    is_loftq = base.manifest["adapter"].get("init") == "loftq"
    settings = {"revision": base.revision, "dtype": dtype, "quant": "nf4" if is_loftq else "none"}
    backbone = artifact.load(folder, artifact.load_base(folder, **settings), allow_quant=not is_loftq)
    merge_to_16_bit(backbone, out, dtype=dtype)
    if (folder / PURPOSE).is_file():  # a paper asks what weights were trained for, merged or not
        shutil.copy(folder / PURPOSE, out)
