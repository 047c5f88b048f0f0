"""`python -m mmedpo.curation`: preference pairs from a data set's questions and a model's own answers.

Exit codes: 0 every question and image was worked through, 1 some failed or wait for the next run, 2 the request was
wrong. What is done is kept: the same command goes on.
"""

import logging
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from typer.main import get_command

from lightbox.backbones.weights import digest_of
from lightbox.chat import KEY_VARIABLE, ChatModel
from lightbox.errors import RequestError, guard
from lightbox.paper.pretrained import find_pretrained
from mmedpo.config import LOCALISER
from mmedpo.curation.contradict import FarthestSample, ModelPicker, Picker
from mmedpo.curation.judges import Panel
from mmedpo.curation.masks import Everywhere, Known, Localiser, MaskFiles, Tower
from mmedpo.curation.pipeline import curate_set
from mmedpo.curation.plan import Plan, Summary, Target
from mmedpo.curation.questions import PHANTOM, load_subjects
from mmedpo.curation.written import PREFERENCES

_ENDPOINT = re.compile(r"(.+?)@(https?://.*)")
app = typer.Typer(add_completion=False)


@app.command()
def curate(
    source: Annotated[str, typer.Option(help="Data set of questions, see `lightbox data list`, or phantom.")],
    model: Annotated[str, typer.Option(help="Target model, whose wrong answers are rejected, as tiny/llava.")],
    out: Annotated[Path, typer.Option(help="Folder of pairs, images and finished stages.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the data set, else $LIGHTBOX_DATA_ROOT/SOURCE.")] = None,
    split: Annotated[str | None, typer.Option(help="One official split; train if left out.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Most images.")] = 20,
    questions: Annotated[int, typer.Option(min=1, help="Most questions about an image.")] = 1,
    pairs: Annotated[str, typer.Option(help="text, image or union.")] = "union",
    seed: Annotated[int, typer.Option(min=0, help="Of samples, noise and phantom.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Answers that are sampled for a question.")] = 4,
    temperature: Annotated[float, typer.Option(help="Of the samples, above 0.")] = 1.0,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    image_px: Annotated[int, typer.Option(min=1, help="Longest side that the target model is shown.")] = 448,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16, of the target model.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N, for the target model.")] = "cpu",
    revision: Annotated[str, typer.Option(help="Full commit hash of a hub id.")] = "",
    picker: Annotated[
        str, typer.Option(help="Who rejects an answer: samples (the farthest from the truth) or MODEL@URL.")
    ] = "samples",
    mask: Annotated[
        str,
        typer.Option(
            help="Where noise goes: full, tower, oracle (phantom), or a folder of PNGs called as those in OUT/images."
        ),
    ] = "full",
    step: Annotated[int, typer.Option(help="Of the noise, 0 to 999.")] = 500,
    judge: Annotated[
        list[str] | None, typer.Option(help="A judge of relevance, MODEL@URL; again for each in the debate.")
    ] = None,
    chat_tokens: Annotated[int, typer.Option(min=1, help="Longest reply of an endpoint, in tokens.")] = 512,
    timeout_s: Annotated[float, typer.Option(help="Longest silence of an endpoint, in s.")] = 120.0,
) -> None:
    """Make preference pairs: the true answer against the model's own wrong one, the true image against a noised one.

    Endpoints are OpenAI-compatible and get texts alone; their key is taken from LIGHTBOX_CHAT_KEY. Research and
    teaching, not clinical use.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    names = [*(judge or []), *([picker] if "@" in picker else [])]
    endpoints = {name: _endpoint(name, timeout_s=timeout_s, max_tokens=chat_tokens) for name in names}
    _check_hosts(list(endpoints.values()))
    datasets, chat = [source], out / "chat"
    panel = Panel([endpoints[name] for name in judge], datasets, chat) if judge else None
    sampling = {"samples": samples, "temperature": temperature, "max_new_tokens": answer_tokens}
    plan = Plan(
        out=out,
        source=source,
        target=_target(model, revision, dtype=dtype, device=device, image_px=image_px, **sampling),
        picker=_picker(picker, endpoints, datasets, chat),
        localiser=_localiser(mask, source),
        panel=panel,
        kinds=pairs,
        step=step,
        seed=seed,
    )
    subjects = load_subjects(source, root=root, split=split, images=images, per_image=questions, seed=seed)
    summary = curate_set(plan, subjects)
    _show(summary, out)
    raise typer.Exit(0 if summary.is_whole else 1)


def _endpoint(name: str, **settings: Any) -> ChatModel:
    found = _ENDPOINT.fullmatch(name)
    if found is None:  # not repeated: a key may stand in it
        why = "It is none of the form MODEL@URL"
        raise RequestError("A judge or picker", why, "Write it as llama3@http://127.0.0.1:8000/v1")
    return ChatModel(found[2], found[1], **settings)


def _check_hosts(chats: list[ChatModel]) -> None:
    hosts = sorted({urlsplit(chat.url).netloc for chat in chats})
    if len(hosts) > 1 and os.environ.get(KEY_VARIABLE):
        raise RequestError(
            f"{KEY_VARIABLE} is set, and there are endpoints at {', '.join(hosts)}",
            "The key of one would be shown to the other",
            f"Unset {KEY_VARIABLE}, or name models of one host",
        )


def _target(name: str, revision: str, *, dtype: str, device: str, **settings: Any) -> Target:
    base = find_pretrained(name, revision)
    if base.family is not None and not base.family.has_vision:
        why = "It sees no image, so its answers would be the same under every one"
        raise RequestError(f"--model is '{name}'", why, "Name a vision-language model, as tiny/llava")

    def open_model() -> Any:
        from mmedpo.curation.models import open_target

        return open_target(base, dtype=dtype, device=device, **settings)

    return Target(name, {"weights": base.digest(), "dtype": dtype, **settings}, open_model)


def _picker(name: str, endpoints: dict[str, ChatModel], datasets: list[str], cache: Path) -> Picker:
    if name in endpoints:
        return ModelPicker(endpoints[name], datasets, cache)
    if name != "samples":
        raise RequestError(f"--picker is '{name}'", "It is neither samples nor MODEL@URL", "Choose one of them")
    return FarthestSample()


def _localiser(name: str, source: str) -> Localiser:
    if name == "tower":

        def open_tower() -> Any:
            from mmedpo.curation.models import open_map

            return open_map()

        return Tower(LOCALISER, digest_of(LOCALISER), open_tower)
    if name == "full":
        return Everywhere()
    if name == "oracle" and source == PHANTOM:
        return Known()
    if Path(name).is_dir():
        return MaskFiles(Path(name))
    why = "It is neither full, tower, oracle with --source phantom, nor a folder"
    raise RequestError(f"--mask is '{name}'", why, "Choose one of them")


def _show(summary: Summary, out: Path) -> None:
    counts = ", ".join(f"{number} of kind {kind}" for kind, number in summary.pairs.items())
    typer.echo(f"Pairs: {counts}, in {out / PREFERENCES}" if any(summary.pairs.values()) else "No pairs")
    for why, number in Counter(summary.left_out.values()).items():
        typer.echo(f"Left out: {number}, {why}")
    if not summary.is_whole:
        counts = f"{len(summary.failures)} failed, as said above, and {len(summary.not_tried)} were not tried"
        typer.echo(f"{counts}; what is done is kept, and the same command goes on with the rest", err=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit; `arguments` None takes the process's own."""
    words = sys.argv[1:] if arguments is None else arguments
    sys.exit(guard(lambda: get_command(app)(args=words, prog_name="python -m mmedpo.curation")))


if __name__ == "__main__":
    main()
