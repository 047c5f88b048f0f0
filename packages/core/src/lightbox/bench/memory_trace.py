"""A training step of the real model without memory: its peak is counted, nothing is computed. Oracle of `memory`.

Floating-point tensors lie on torch's meta device, so they have a size and no content; integers are real, because models
read them (where images are, how large). Model, adapters, checkpointing, head and loss are the ones that train.

Stand-ins: attention on a card saves what its fused kernels save; bitsandbytes' own shape functions stand for its
compiled kernels; the optimiser's moments are there, and its arithmetic, which needs no memory, is left out.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightbox.adapters.attach import attach
from lightbox.adapters.memory.request import Request
from lightbox.adapters.optimizers import make_optimizer
from lightbox.bench.live_bytes import COMPOSED, COMPOSED_ON_CPU, held_by, peak_bytes, storage_bytes
from lightbox.bench.random_models import build, make_batch

_INTEGERS = (torch.int64, torch.int32, torch.bool)
_aten = torch.ops.aten


def trace(request: Request) -> int:
    """Peak bytes of tensors in a training step, the moments of the optimiser included; no context, no gaps."""
    composed = COMPOSED | COMPOSED_ON_CPU if request.device == "cpu" else COMPOSED
    with _Sizes(), _as_on(request.device, is_quantised=request.adapter.quant != "none"):
        is_eager = request.attention == "eager"
        backbone = build(
            request.config,
            quant=request.adapter.quant,
            dtype=request.dtype,
            device="meta",
            attention="eager" if is_eager else "sdpa",
        )
        backbone = attach(backbone, request.adapter, checkpoint_layers=request.checkpoint_layers)
        model = backbone.model.train()
        batch = make_batch(backbone, request)

        def step() -> None:
            total, tokens, _ = backbone.loss(batch)
            (total / tokens).backward()

        if request.accumulates:
            step()
        gradients = storage_bytes(p.grad for p in model.parameters() if p.grad is not None)
        peak = gradients + peak_bytes(step, composed=composed)
        # what has no gradient (layers of a tower behind the one that is read) gets no moments
        trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
        held = storage_bytes(held_by(model, {**batch.inputs, "labels": batch.labels}))
        if request.optimizer == "adamw":
            return held + peak + 2 * storage_bytes(trained)
        optimizer: Any = make_optimizer("adamw_8bit", [{"params": trained}], lr=1e-4, weight_decay=0.0)
        for index, parameter in enumerate(trained):
            optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
        update = storage_bytes(p.grad for p in trained) + peak_bytes(optimizer.step, composed=composed)
        return held + storage_bytes(held_by(optimizer)) + max(peak, update)


class _Sizes(TorchDispatchMode):
    """Whatever touches a tensor of the meta device is done there; integers, and masks of ones, stay real."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not any(isinstance(value, Tensor) and value.is_meta for value in tree_leaves((args, kwargs))):
            result = func(*args, **kwargs)
            is_read = isinstance(result, Tensor) and (result.dtype in _INTEGERS or func is _aten.ones.default)
            if is_read and result.is_meta:
                return func(*args, **kwargs | {"device": torch.device("cpu")})
            return result
        if func is _aten._local_scalar_dense.default:
            return True  # what a model asks of content: are all values finite?
        if func in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default):
            args = (args[0], [_places(index) for index in args[1]], *args[2:])
        return func(*tree_map(_on_meta, args), **tree_map(_on_meta, kwargs))


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) and not value.is_meta else value


def _places(index: Tensor | None) -> Tensor | None:
    if index is None or index.dtype != torch.bool or index.is_meta:
        return index
    return index.nonzero().squeeze(-1)


@contextmanager
def _as_on(device: str, *, is_quantised: bool) -> Iterator[None]:
    """Attention, dropout and int8 products with what they keep on a device."""
    is_cuda = device == "cuda"
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", return_value=False))  # not known on meta
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", partial(_attend, is_cuda=is_cuda)))
        if is_cuda:
            stack.enter_context(mock.patch.object(F, "dropout", _drop_on_cuda))
        if is_quantised:
            from bitsandbytes import functional, nn  # noqa: PLC0415  10 s that only quantised models pay
            from bitsandbytes.autograd import _functions  # noqa: PLC0415

            # its tables of codes would stay behind without content
            stack.enter_context(mock.patch.dict(functional.name2qmap, clear=True))
            # DoRA reads a copy of a layer, and a copy begins with content
            stack.enter_context(mock.patch.object(nn.Params4bit, "__deepcopy__", lambda self, _: self))
            if not is_cuda:
                stack.enter_context(mock.patch.object(_functions, "MatMul8bitLt", _functions.MatMul8bitFp))
        yield


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    is_cuda: bool,
) -> Any:
    """The kernel that torch would choose: fused, or one that makes the scores."""
    is_bool = attn_mask is not None and attn_mask.dtype == torch.bool
    mask = query.new_zeros(attn_mask.shape) if is_bool else attn_mask  # booleans become numbers that are added
    # on a card flash takes 16 bits only, and the other fused kernel no groups; on a CPU it takes no noise
    no_fused = enable_gqa and query.dtype == torch.float32
    if no_fused if is_cuda else dropout_p > 0 or (mask is not None and mask.requires_grad):
        options = {"scale": scale, "enable_gqa": enable_gqa}
        return _aten._scaled_dot_product_attention_math(query, key, value, mask, dropout_p, is_causal, **options)[0]
    if is_cuda:
        return _Fused.apply(query, key, value, mask)
    options = {"attn_mask": mask, "scale": scale}
    return _aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal, **options)[0]


def _drop_on_cuda(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of a card keeps a byte for each number."""
    return _aten.native_dropout(x, p, True)[0] if training and p > 0 else x


class _Fused(torch.autograd.Function):
    """Memory of the fused kernels of a card: they save inputs, result and a number a row, and sum in float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        rows = query.transpose(1, 2).shape  # the result is laid out by rows, so no copy follows
        out = query.new_empty(*rows[:-1], value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, mask, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, _, _ = ctx.saved_tensors
        sums = query.new_empty(query.shape, dtype=torch.float32)
        grads = [torch.empty_like(one) for one in (query, key, value)]
        del sums
        return *grads, torch.empty_like(mask) if ctx.needs_input_grad[3] else None
