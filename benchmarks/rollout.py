"""Compare ViTAR's rollouts with `generate` called once a turn and with trl's `GRPOTrainer`: tokens chosen a second.

As `lightbox bench rollout`, whose sides, conversations and checks these are, but ours is `vitar.rollout.roll_out`, with
replies read and counted as in training.

Run on an idle core: uv run python benchmarks/rollout.py --record
"""

import argparse
from pathlib import Path

from transformers.utils import logging as transformers_logging

from lightbox.bench import ledger
from lightbox.bench.rollout import GROUP, PROMPTS, run
from lightbox.bench.rollout_scene import CODEC, FEEDBACK, Scene, Transcript
from vitar.rollout import Talk, roll_out

RESULTS = Path(__file__).parent / "results.csv"


def main() -> None:
    """Measure, print, and append two rows on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="with --group conversations each")
    parser.add_argument("--group", type=int, default=GROUP, help="conversations that begin with one prompt")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each side, in turns")
    parser.add_argument("--record", action="store_true", help="append the rows to results.csv")
    options = parser.parse_args()
    rows = run(prompts=options.prompts, group=options.group, repeats=options.repeats, ours=by_roll_out)
    rows = [row | {"case": f"ViTAR's {row['case']}"} for row in rows]
    for row in rows:
        value = f"{row['value']} {row['unit']}"
        print(f"{row['case']}: {row['ratio']}, goal {row['goal']} x {row['peer']} ({value}; {row['notes']})")
    if options.record:
        ledger.append(RESULTS, "rollout", rows)


def by_roll_out(scene: Scene) -> list[Transcript]:
    """Our side, with the environment of the paper."""
    talk = Talk(CODEC, FEEDBACK, most_turns=2, max_new_tokens=scene.script.turn_tokens, temperature=0.0)
    tasks, seeds = scene.tasks[:: scene.group], range(len(scene.tasks))
    episodes = roll_out(scene.backbone, tasks, talk, seeds=seeds, group=scene.group)
    return [Transcript(episode.ids, episode.is_chosen) for episode in episodes]


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    main()
