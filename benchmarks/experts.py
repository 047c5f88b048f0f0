"""What MedPLIB's mixture of two experts costs: against one dense network of an expert's size, and against Mixtral.

A Llama with random weights; its two experts differ, the router is random, one expert a token. FLOP are counted of the
whole model, in prefill and in a step with a cache, and must be within 1 % of the dense model's. Then times, in turns:

- prefill, batch 1 and 8, and a step of decoding, batch 1 and 8, against the dense model. At a batch of 8 a step has two
  products of a few rows each in place of one, so both experts' weights are read: that row is recorded and has no goal.
- prefill against the same weights in Mixtral of transformers with its `batched_mm` experts; both must say the same.

Run on an idle core: uv run python benchmarks/experts.py --record
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, MixtralConfig

from lightbox.backbones.seq2seq import quiet_loading
from lightbox.bench import ledger, timing
from lightbox.errors import WorkError
from medplib.assembly import add_experts
from medplib.mixtral import to_mixtral

RESULTS = Path(__file__).parent / "results.csv"
LAYERS, HEADS, VOCABULARY = 4, 4, 2048
MOST_FLOP = 1.01
TIME_GOALS = {("prefill", 1): "<= 1.15", ("prefill", 8): "<= 1.15", ("decode", 1): "<= 1.15", ("decode", 8): ""}
DENSE, FUSED = "one dense network of an expert's size", "Mixtral of transformers, batched_mm"
TOLERANCE = 1e-4
"""Largest difference of logits between ours and Mixtral, whose products have other shapes."""


def main() -> None:
    """Measure, print, and append seven rows on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256, help="of the states; the network has four times as much")
    parser.add_argument("--tokens", type=int, default=256, help="of a row in prefill, and in the cache of a step")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each side, in turns")
    parser.add_argument("--round-s", type=float, default=1.0, help="seconds of a measurement, at least one call")
    parser.add_argument("--record", action="store_true", help="append the rows to results.csv")
    options = parser.parse_args()
    rows = measured(options.width, options.tokens, rounds=options.rounds, round_s=options.round_s)
    for row in rows:
        goal = f", goal {row['goal']}" if row["goal"] else ""
        print(f"{row['case']}: {row['ratio']}{goal} x {row['peer']} ({row['value']} {row['unit']}; {row['notes']})")
    if options.record:
        ledger.append(RESULTS, "experts", rows)


@torch.inference_mode()
def measured(width: int, tokens: int, *, rounds: int, round_s: float) -> list[dict[str, Any]]:
    """FLOP, and times of every case.

    Raises:
        WorkError: where the mixture does more work than the goal allows, or says something else than Mixtral.
    """
    dense, mixture, fused = models(width, tokens)
    setting = f"width {width} x {LAYERS}, FFN {4 * width}, {tokens} tokens, 2 experts, top-1, fp32, 1 thread"
    rows = []
    for name, call in {"prefill": prefill, "decode": decode}.items():
        flop = [flop_of(call(model, 1, tokens)) for model in (mixture, dense)]
        ratio = flop[0] / flop[1]
        if ratio >= MOST_FLOP:
            raise WorkError(
                f"{name} takes {ratio:.4f} times the FLOP of one expert", "The goal is 1.01", "Find what is done twice"
            )
        row = {"case": f"{name}, batch 1, FLOP", "peer": DENSE, "value": round(flop[0] / 1e6, 3), "unit": "MFLOP"}
        rows.append(row | {"ratio": round(ratio, 5), "goal": f"< {MOST_FLOP}", "notes": f"lower is better; {setting}"})
    for (name, batch), goal in TIME_GOALS.items():
        call = {"prefill": prefill, "decode": decode}[name]
        calls = {"ours": call(mixture, batch, tokens), "dense": call(dense, batch, tokens)}
        own, ratios, spread = taken(calls, rounds, round_s)
        row = {
            "case": f"{name}, batch {batch}",
            "peer": DENSE,
            "value": round(own * 1e3, 3),
            "unit": "ms",
            "goal": goal,
        }
        why = "" if goal else "; both experts' weights are read for a few rows each"
        ratio = round(1 / statistics.median(ratios), 3)
        rows.append(row | {"ratio": ratio, "notes": f"lower is better; {spread}; {setting}{why}"})
    calls = {"ours": prefill(mixture, 1, tokens), "Mixtral": prefill(fused, 1, tokens)}
    apart = float((calls["ours"]() - calls["Mixtral"]()).abs().max())
    if apart > TOLERANCE:
        raise WorkError(
            f"Logits of the mixture and Mixtral differ by {apart:.2g}",
            "They hold the same weights",
            "Find the difference",
        )
    own, ratios, spread = taken(calls, rounds, round_s)
    row = {
        "case": "prefill, batch 1",
        "peer": FUSED,
        "value": round(tokens / own, 1),
        "unit": "tokens/s",
        "goal": ">= 5",
    }
    return [*rows, row | {"ratio": round(statistics.median(ratios), 3), "notes": f"{spread}; {setting}; same logits"}]


def models(width: int, tokens: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A dense Llama, a mixture of it and of another one, and that mixture as a Mixtral."""
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2 * tokens,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    torch.manual_seed(0)
    with quiet_loading(), torch.inference_mode(mode=False):
        dense = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
        other = copy.deepcopy(dense)
        for layer in other.model.layers:
            for parameter in layer.mlp.parameters():
                nn.init.normal_(parameter, std=0.02)
        mixture = add_experts(copy.deepcopy(dense), {"first": dense, "second": other}, layers="model.layers")
        config = MixtralConfig(
            **sizes, num_local_experts=2, num_experts_per_tok=1, sliding_window=None, head_dim=width // HEADS
        )
        fused = AutoModelForCausalLM.from_config(config, experts_implementation="batched_mm")
        fused.load_state_dict(to_mixtral(mixture), strict=True)
    assert set(fused.get_experts_implementation().values()) == {"batched_mm"}
    return dense, mixture.eval(), fused.eval()


def prefill(model: nn.Module, batch: int, tokens: int) -> Callable[[], Tensor]:
    """A call that reads a prompt and gives the logits of its last token."""
    ids = drawn(batch, tokens)
    return lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1).logits


def decode(model: nn.Module, batch: int, tokens: int) -> Callable[[], Tensor]:
    """A call that reads one more token behind a prompt, and forgets it again."""
    ids, cache = drawn(batch, tokens), DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def step() -> Tensor:
        logits = model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True).logits
        cache.crop(-1)
        return logits

    return step


def drawn(batch: int, tokens: int) -> Tensor:
    """Random token ids."""
    return torch.randint(10, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(1))


def flop_of(call: Callable[[], Tensor]) -> int:
    """Floating-point operations of a call, as torch counts its products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def taken(calls: dict[str, Callable[[], Tensor]], rounds: int, round_s: float) -> tuple[float, list[float], str]:
    """Median seconds of the first call, how many times as long the second takes in each round, and both in words."""
    own, peer = timing.in_turns(calls, rounds=rounds, round_s=round_s).values()
    _, ratios = timing.ratio_of(peer, own)
    times = [timing.pooled(samples) for samples in (own, peer)]
    names = " and ".join(f"{name} {time}" for name, time in zip(calls, times, strict=True))
    return (
        times[0].median,
        ratios,
        f"{names}; {rounds} turns, ratios {min(ratios):.3f} to {max(ratios):.3f} peer to ours",
    )


if __name__ == "__main__":
    main()
