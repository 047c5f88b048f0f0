"""Small sets in every form that the readers of questions and of preference pairs take, by hand or cut from real data.

Hand-made sets show drawn pictures, or pictures of the real sets, byte for byte, where a data root is given.
"""

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lightbox.testing.spoiled.small import PICTURES, ROWS, Draw, SmallSet, dicom_bytes, lines, pack, put, table

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _rad_row(number: int, image: str, **fields: object) -> dict:
    return {
        "qid": number,
        "image_name": image,
        "image_organ": ("HEAD", "CHEST", "ABD")[number % 3],
        "image_case_url": f"https://medpix.nlm.nih.gov/case?id={number % PICTURES}",
        "answer": ("Yes", "No", "left lobe", 2)[number % 4],
        "answer_type": "CLOSED" if number % 4 < 2 else "OPEN",
        "question_type": "PRES",
        "question": f"What does picture {number} show?",
        "phrase_type": "freeform",
        **fields,
    }


def _rad_public(folder: Path, _: random.Random, draw: Draw) -> None:
    for place in range(PICTURES):
        put(folder / "images" / f"synpic{place}.jpg", draw(".jpg"))
    kinds = ("freeform", "test_freeform")
    rows = [_rad_row(n, f"synpic{n % PICTURES}.jpg", phrase_type=kinds[n % PICTURES == 3]) for n in range(2 * ROWS)]
    put(folder / "VQA_RAD Dataset Public.json", rows)


def _rad_own_split(folder: Path, rng: random.Random, draw: Draw) -> None:
    _rad_public(folder, rng, draw)
    put(folder / "ours.json", {"train": ["synpic0", "synpic1"], "test": ["synpic2", "synpic3"]})


def _rad_dicom(folder: Path, rng: random.Random, _: Draw) -> None:
    for place in range(PICTURES):
        pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 4095, (16, 20)).astype(np.uint16)
        put(folder / "images" / f"{place}.dcm", dicom_bytes(pixels))
    put(folder / "trainset.json", [_rad_row(number, f"{number % PICTURES}.dcm") for number in range(ROWS)])


def _rad_real(folder: Path, rng: random.Random, source: Path, *, form: str) -> None:
    files = {
        "split": ("trainset.json", "testset.json"),
        "llava": tuple(sorted(str(file.relative_to(source)) for file in source.glob("llava_med_format/*.jsonl"))),
    }[form]
    image_field = "image_name" if form == "split" else "image"
    read = {}
    for name in files:
        text = (source / name).read_text("utf-8")
        read[name] = json.loads(text) if form == "split" else [json.loads(line) for line in text.splitlines()]
    shown = rng.sample(sorted({row[image_field] for row in read[files[-1]]} | {read[files[0]][0][image_field]}), 3)
    for name, rows in read.items():
        kept = [row for row in rows if row[image_field] in shown][: 2 * ROWS] or rows[:1]
        put(folder / name, kept if form == "split" else lines(kept))
        for row in kept:
            image = Path("images") / row[image_field]
            put(folder / image, (source / image).read_bytes())


def _rad_split(folder: Path, rng: random.Random, source: Path) -> None:
    _rad_real(folder, rng, source, form="split")


def _rad_llava(folder: Path, rng: random.Random, source: Path) -> None:
    _rad_real(folder, rng, source, form="llava")


def _med_real(folder: Path, rng: random.Random, source: Path) -> None:
    (pairs,) = source.glob("*/All_QA_Pairs_train.txt")
    base = pairs.parent
    (images,) = (path for path in base.iterdir() if path.is_dir() and "images" in path.name.lower())
    shown = set(rng.sample(sorted(path.stem for path in images.iterdir()), 3))
    for file in (pairs, *sorted(base.glob("QAPairsByCategory/*.txt"))):
        kept = [line for line in file.read_bytes().splitlines(keepends=True) if line.split(b"|")[0].decode() in shown]
        put(folder / base.name / file.relative_to(base), b"".join(kept) or b"\n")
    for name in shown:
        put(folder / base.name / images.name / f"{name}.jpg", (images / f"{name}.jpg").read_bytes())


def _med_test(folder: Path, _: random.Random, draw: Draw) -> None:
    kinds = ("modality", "plane", "organ", "abnormality")
    rows = [f"synpic{n % PICTURES}|{kinds[n % 4]}|what is in picture {n}?|shape {n}#form {n}\n" for n in range(ROWS)]
    put(folder / "VQAMed2019_Test_Questions_w_Ref_Answers.txt", "".join(rows))
    for place in range(PICTURES):
        put(folder / "VQAMed2019_Test_Images" / f"synpic{place}.jpg", draw(".jpg"))


def _slake_row(number: int, **fields: object) -> dict:
    place = number % PICTURES
    return {
        "img_id": place,
        "img_name": f"xmlab{place}/source.jpg",
        "question": f"Is there a liver in picture {number}?",
        "answer": ("Yes", "No", "Chest")[number % 3],
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "CLOSED" if number % 3 < 2 else "OPEN",
        "base_type": ("vqa", "kvqa")[number % 2],
        "content_type": "Organ",
        "triple": ["Liver", "Function", "_"],
        "qid": number,
        **fields,
    }


def _slake_images(draw: Draw) -> Iterator[tuple[str, bytes | str]]:
    for place in range(PICTURES):
        picture = draw(".jpg")
        width, height = Image.open(io.BytesIO(picture)).size
        left, top, wide, high = width // 4, height // 4, width // 2, height // 2
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + high, left : left + wide] = 90
        stream = io.BytesIO()
        Image.fromarray(mask).save(stream, "PNG")
        yield f"imgs/xmlab{place}/source.jpg", picture
        yield f"imgs/xmlab{place}/mask.png", stream.getvalue()
        boxes = [{"Liver": [left, top, wide, high]}, {"Kidney": [1, 1, 2, 2]}]
        yield f"imgs/xmlab{place}/detection.json", json.dumps(boxes)


def _slake_folder(folder: Path, _: random.Random, draw: Draw) -> None:
    for name, content in _slake_images(draw):
        put(folder / name, content)
    put(folder / "train.json", [_slake_row(number) for number in range(ROWS)])
    put(folder / "test.json", [_slake_row(number) for number in range(ROWS, 2 * ROWS)])


def _slake_zip(folder: Path, _: random.Random, draw: Draw) -> None:
    pack(folder / "imgs.zip", dict(_slake_images(draw)))
    put(folder / "train.json", [_slake_row(number) for number in range(ROWS)])
    put(folder / "validation.json", [_slake_row(number) for number in range(ROWS, 2 * ROWS)])


def _slake_by_image(folder: Path, _: random.Random, draw: Draw) -> None:
    for name, content in _slake_images(draw):
        put(folder / name, content)
    for place in range(PICTURES):
        rows = [_slake_row(place + PICTURES * number) for number in range(3)]
        put(folder / f"imgs/xmlab{place}/question.json", rows)


def _slake_real(folder: Path, rng: random.Random, source: Path) -> None:
    rows = json.loads((source / "validate.json").read_text("utf-8"))
    facts = [row for row in rows if row["base_type"] == "kvqa"]
    put(folder / "validate.json", rng.sample(rows, 2 * ROWS) + rng.sample(facts, 2))


def _parquet(file: Path, draw: Draw, *, first: int = 0, **columns: Callable[[int], str]) -> None:
    pictures = [draw(".png" if place % 2 else ".jpg") for place in range(PICTURES)]
    rows = [
        {
            "image": {"bytes": pictures[number % PICTURES], "path": None},
            "question": f"What is in picture {first + number}?",
            "answer": ("yes", "no", "a ring")[number % 3],
            **{name: of(number) for name, of in columns.items()},
        }
        for number in range(ROWS)
    ]
    schema = {"image": _IMAGE, "question": pa.string(), "answer": pa.string()} | dict.fromkeys(columns, pa.string())
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(schema)), file, row_group_size=4)


def _shards(folder: Path, _: random.Random, draw: Draw) -> None:
    _parquet(folder / "data" / "train-00000-of-00001.parquet", draw)
    _parquet(folder / "data" / "test-00000-of-00001.parquet", draw, first=ROWS)


def _kvasir(folder: Path, _: random.Random, draw: Draw) -> None:
    for shard in range(2):
        _parquet(
            folder / "data" / f"{shard:05d}.parquet",
            draw,
            first=shard * ROWS,
            source=lambda number: ("polyps", "instruments")[number % 2],
            img_id=lambda number, shard=shard: f"cl{shard}k{number % PICTURES}",
        )


def _rationales(folder: Path, draw: Draw, *, field_name: str, ending: str, stems: tuple[str, str]) -> None:
    for place in range(PICTURES):
        put(folder / "images" / f"a{place}.jpg", draw(".jpg"))
    for kind, choices in (("closed", ["yes", "no"]), ("open", ["left lobe"])):
        for part, stem in enumerate(stems):
            rows = {
                str(10 * part + number): {
                    "question": f"Is there a ring in picture {number}?",
                    "choices": choices,
                    "answer": number % len(choices),
                    "solution": f"Picture {number} was looked at.",
                    field_name: f"a{(number + part) % PICTURES}{ending}",
                    **({"image_organ": "HEAD"} if field_name == "image" else {"img_id": (number + part) % PICTURES}),
                }
                for number in range(4)
            }
            put(folder / f"{kind}-end" / f"{stem}.json", rows)


def _r_rad(folder: Path, _: random.Random, draw: Draw) -> None:
    _rationales(folder, draw, field_name="image", ending=".jpg", stems=("trainset", "testset"))


def _r_slake(folder: Path, _: random.Random, draw: Draw) -> None:
    _rationales(folder, draw, field_name="img_name", ending=".jpg", stems=("train", "test"))


def _r_path(folder: Path, _: random.Random, draw: Draw) -> None:
    _rationales(folder, draw, field_name="image", ending="", stems=("trainset", "valset"))


_PMC = [f"Choice {letter}" for letter in "ABCD"]
_SHAPES = ("Disc", "Ring", "Star", "Cross")


def _pmc_rows(files: tuple[str, str], *, is_second: bool) -> Iterator[tuple[str, list[list[str]]]]:
    choices = [f" {letter}:{shape}" for letter, shape in zip("ABCD", _SHAPES, strict=True)]
    for part, name in enumerate(files):
        rows = []
        for number in range(ROWS):
            image, question, right = f"P{number % PICTURES}_F1.jpg", f"What is in {part}, {number}?", number % 4
            first = [image, question, _SHAPES[right], *choices, "ABCD"[right]]
            second = [str(number), image, "A shape.", question, *choices, "ABCD"[right], name.split("_")[0]]
            rows.append(second if is_second else first)
        yield name, rows


def _pmc_first(folder: Path, _: random.Random, draw: Draw) -> None:
    for place in range(PICTURES):
        put(folder / "images" / f"P{place}_F1.jpg", draw(".jpg"))
    for name, rows in _pmc_rows(("train", "test"), is_second=False):
        table(folder / f"{name}.csv", ["Figure_path", "Question", "Answer", *_PMC, "Answer_label"], rows)


def _pmc_second(folder: Path, _: random.Random, draw: Draw) -> None:
    pack(folder / "images_2.zip", {f"figures/P{place}_F1.jpg": draw(".jpg") for place in range(PICTURES)})
    header = ["index", "Figure_path", "Caption", "Question", *_PMC, "Answer", "split"]
    for name, rows in _pmc_rows(("train_2", "test_2"), is_second=True):
        table(folder / f"{name}.csv", header, rows)


def _omni_files(draw: Draw) -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = {}
    for name in ("Shapes", "Forms"):
        rows = []
        for number in range(ROWS):
            files[f"Images/{name}/{number % PICTURES}.png"] = draw(".png")
            rows.append(
                {
                    "dataset": name,
                    "question_id": f"{name}_{number}",
                    "question_type": "Modality Recognition",
                    "question": f"What is picture {number}?",
                    "gt_answer": "drawing",
                    "image_path": f"Images/{name}/{number % PICTURES}.png",
                    "option_A": "Drawing",
                    "option_B": "Photograph",
                    "option_C": "X-ray",
                    "modality_type": "Digital Photography",
                }
            )
        files[f"QA_information/Open-access/{name}.json"] = json.dumps(rows)
    return files


def _omni_folder(folder: Path, _: random.Random, draw: Draw) -> None:
    for name, content in _omni_files(draw).items():
        put(folder / name, content)


def _omni_zip(folder: Path, _: random.Random, draw: Draw) -> None:
    pack(folder / "OmniMedVQA.zip", {f"OmniMedVQA/{name}": content for name, content in _omni_files(draw).items()})


def _xpert(folder: Path, _: random.Random, draw: Draw, *, is_zip: bool) -> None:
    letters = "ABCDE"
    images = {f"images/MM-{number}-a.png": draw(".png") for number in range(2 * ROWS)}
    for part, name in enumerate(("dev", "test")):
        rows = [
            {
                "id": f"MM-{number}",
                "question": f"Which shape is {number}?\nAnswer Choices: (A) 0 (B) 1 (C) 2 (D) 3 (E) 4",
                "options": {letter: str(place) for place, letter in enumerate(letters)},
                "label": letters[number % 5],
                "images": [f"MM-{number}-a.png"],
                "medical_task": "Diagnosis",
                "body_system": "Skeletal",
                "question_type": "Reasoning",
            }
            for number in range(part * ROWS, part * ROWS + ROWS)
        ]
        put(folder / "MM" / f"{name}.jsonl", lines(rows))
    if is_zip:
        pack(folder / "images.zip", images)
    else:
        for name, content in images.items():
            put(folder / name, content)


def _xpert_zip(folder: Path, rng: random.Random, draw: Draw) -> None:
    _xpert(folder, rng, draw, is_zip=True)


def _xpert_folder(folder: Path, rng: random.Random, draw: Draw) -> None:
    _xpert(folder, rng, draw, is_zip=False)


def _pair_row(number: int, image: str, **fields: object) -> dict:
    prompt = {"from": "human", "value": f"<image>\nWhat does picture {number} show?"}
    answers = [f" shape {number}", f" form {number}" if "rejected_image" not in fields else f" shape {number}"]
    first, second = ([prompt, {"from": "gpt", "value": answer}] for answer in answers)
    score = number % 10 / 10
    row = {"id": number, "image": image, "conversations": first, "rejected_conversations": second}
    return row | {"weighted_score": score, "base_model": "a model"} | fields


def _pairs(folder: Path, _: random.Random, draw: Draw) -> None:
    for place in range(PICTURES):
        put(folder / "images" / f"a{place}.jpg", draw(".jpg"))
        put(folder / "images" / "destroyed" / f"a{place}.jpg", draw(".jpg"))
    rows = []
    for number in range(2 * ROWS):
        image = f"a{number % PICTURES}.jpg"
        rows.append(_pair_row(number, image, **({"rejected_image": f"destroyed/{image}"} if number % 2 else {})))
    put(folder / "pairs.json", rows)


def _pairs_real(folder: Path, rng: random.Random, source: Path) -> None:
    name = "data/vqa-rad_dpo_weighted.json"
    rows = rng.sample(json.loads((source / name).read_text("utf-8")), 2 * ROWS)
    put(folder / name, rows)
    for row in rows:
        put(folder / "images" / row["image"], (source.parent / "vqa_rad" / "images" / row["image"]).read_bytes())


QUESTION_SETS: dict[str, SmallSet] = {
    "vqa_rad": SmallSet("vqa_rad", _rad_split, folder="vqa_rad"),
    "vqa_rad/llava_med": SmallSet("vqa_rad", _rad_llava, {"form": "llava_med"}, folder="vqa_rad"),
    "vqa_med_2019": SmallSet("vqa_med_2019", _med_real, folder="vqa_med_2019"),
    "vqa_med_2019_train": SmallSet("vqa_med_2019", _med_real, folder="vqa_med_2019_train"),
    "slake_qa_text": SmallSet("slake", _slake_real, folder="slake_qa_text"),
    "mmedpo_vqa_rad": SmallSet("mmedpo_vqa_rad", _pairs_real, folder="mmedpo_preferences"),
    "preference_json": SmallSet("preference_json", _pairs),
    "vqa_rad/public": SmallSet("vqa_rad", _rad_public),
    "vqa_rad/own split": SmallSet("vqa_rad", _rad_own_split, split_file="ours.json"),
    "vqa_rad/dicom": SmallSet("vqa_rad", _rad_dicom),
    "vqa_rad/parquet": SmallSet("vqa_rad", _shards),
    "vqa_med_2019/test": SmallSet("vqa_med_2019", _med_test),
    "slake/folder": SmallSet("slake", _slake_folder, {"use_masks": True}),
    "slake/zip": SmallSet("slake", _slake_zip, {"use_masks": True}),
    "slake/by image": SmallSet("slake", _slake_by_image),
    "slake/parquet": SmallSet("slake", _shards),
    "path_vqa": SmallSet("path_vqa", _shards),
    "r_rad": SmallSet("r_rad", _r_rad),
    "r_slake": SmallSet("r_slake", _r_slake),
    "r_path": SmallSet("r_path", _r_path),
    "pmc_vqa/v1": SmallSet("pmc_vqa", _pmc_first),
    "pmc_vqa/v2": SmallSet("pmc_vqa", _pmc_second),
    "kvasir_vqa": SmallSet("kvasir_vqa", _kvasir),
    "omnimedvqa/folder": SmallSet("omnimedvqa", _omni_folder),
    "omnimedvqa/zip": SmallSet("omnimedvqa", _omni_zip),
    "medxpertqa_mm/zip": SmallSet("medxpertqa_mm", _xpert_zip),
    "medxpertqa_mm/folder": SmallSet("medxpertqa_mm", _xpert_folder),
}
