"""trl's side of the rollout benchmark: `GRPOTrainer` samples both turns itself, the second after a tool's image.

What trl 1.16 can do with images that a tool returns, read in its source and run here: a tool may return blocks of
content, images among them, which reach the model in its next turn. Ids are put behind ids, so what the policy chose
stays as it is. But `generate` is called anew on the whole row with the pixels of all its images: every turn encodes
each image and reads each token again, and every row of a group has its own copy of the prompt. Continuous batching of
transformers is refused for models with images, vLLM needs a GPU, and with `rollout_func` trl samples nothing itself.

The rest is set as fast as it goes: all conversations at once, nothing padded to a multiple, greedy as the other sides,
one plain tool, since with `environment_factory` every prompt is processed by itself. Rewards, log-probabilities and the
step are not timed.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import datasets
from trl import GRPOConfig, GRPOTrainer

from lightbox.backbones.loading import load
from lightbox.bench.rollout_scene import Scene, Transcript, message, scripted, told
from lightbox.pretrain.qwen2_5_vl import CHAT_TEMPLATE

TOOL, ARGUMENT = "mark", "box"
END = r"<\|im_end\|>\s*"
RESPONSES = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": f"<{TOOL}>",
            "close_pattern": END,
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": TOOL, "arguments": {ARGUMENT: "{content}"}}},
        },
        "content": {"close_pattern": END, "content": "text"},
    },
}
"""How transformers reads a tag as the call of a tool."""
TOOL_TEMPLATE = CHAT_TEMPLATE.replace(
    "message['role'] +", "('user' if message['role'] == 'tool' else message['role']) +"
)
TOOL_TEMPLATE = TOOL_TEMPLATE.replace(
    "{{ '<|im_end|>",
    "{% for call in message.get('tool_calls') or [] %}{{ '<' + call.function.name + '>' }}"
    "{% for name, value in call.function.arguments.items() %}"
    f"{{% if name != '{ARGUMENT}' %}}{{{{ name }}}}{{% endif %}}{{{{ value }}}}"
    "{% endfor %}{% endfor %}{{ '<|im_end|>",
)
"""The model's template with calls of tools as the policy writes them and what a tool returns as a user's turn."""


@contextmanager
def opened(scene: Scene, name: str, folder: Path) -> Iterator[Callable[[], list[Transcript]]]:
    """A block in which trl's side can be called, on weights of its own: the trainer changes the model that it gets.

    Args:
        scene: what is talked about.
        name: of the weights.
        folder: for the trainer.
    """
    backbone = load(name)
    processor, tasks = backbone.processor, itertools.cycle(scene.tasks)
    processor.chat_template = backbone.tokenizer.chat_template = TOOL_TEMPLATE
    backbone.tokenizer.response_template = RESPONSES

    def mark(box: str) -> list[dict]:
        """Show the image with an outline around a box.

        Args:
            box: four location tokens.
        """
        # a plain tool is not told whose call this is; rows call once each, in order
        return message(told(next(tasks), f"<{TOOL}>{box}"))["content"]

    prompts = [[message(*opening.turns)] for opening in scene.openings for _ in range(scene.group)]
    with scripted(backbone.core, scene.script):
        trainer = GRPOTrainer(
            backbone.core,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                str(folder),
                per_device_train_batch_size=len(prompts),
                num_generations=max(2, scene.group),
                max_completion_length=backbone.context_tokens // 2,  # of both turns and the image; the script ends them
                max_tool_calling_iterations=1,
                generation_kwargs={"do_sample": False, "top_k": None},
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": ""}]}] * len(prompts)),
            processing_class=processor,
            tools=[mark],
        )
        # as before every step; the trainer makes them together with its rewards
        trainer._sync_tool_dicts = [{TOOL: mark}] * len(prompts)
        trainer._async_tool_dicts = [{}] * len(prompts)
        yield partial(_sampled, trainer, prompts)


def _sampled(trainer: GRPOTrainer, prompts: list) -> list[Transcript]:
    """What `GRPOTrainer` does to sample: `_generate`, from prompts to completions."""
    prompt_ids, completion_ids, is_own = trainer._generate(prompts)[:3]
    return [
        Transcript([*before, *after], [*[False] * len(before), *map(bool, own)])
        for before, after, own in zip(prompt_ids, completion_ids, is_own, strict=True)
    ]
