"""Every kernel compiles for consumer and data-centre cards, without one here: shared memory fits, nothing is atomic.

Triton compiles to machine code without a driver. What the interpreter cannot see shows here: types that do not agree
in a loop, operations that do not exist on a card, shared memory above what the smallest card grants.
"""

import math

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightbox.kernels import backend
from lightbox.kernels.assign_merge import kernel as merge_kernel
from lightbox.kernels.attn_colmean import kernel as colmean_kernel
from lightbox.kernels.few_query_scores import kernel as query_kernel
from lightbox.kernels.greedy_select import kernel as greedy_kernel
from lightbox.kernels.ragged_splice import kernel as splice_kernel
from lightbox.kernels.segment_select import kernel as select_kernel
from lightbox.kernels.temporal_keep import kernel as temporal_kernel
from lightbox.testing.packed import counts, offsets

pytestmark = pytest.mark.slow
SHARED_BYTES = 99 * 1024  # what a program may have on compute capability 8.6 and 8.9
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Compiler:
    """Stands in for a kernel: a launch compiles it for these arguments and runs nothing."""

    def __init__(self, function, capability):
        self.function, self.target, self.made = function, GPUTarget("cuda", capability, 32), []

    def __getitem__(self, grid):
        assert all(isinstance(size, int) for size in grid)
        return self

    def __call__(self, *values, **named):
        names = self.function.arg_names
        given = dict(zip(names, values, strict=False)) | {key: named[key] for key in named if key in names}
        assert set(given) == set(names)
        options = {key: value for key, value in named.items() if key not in names}
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.function.params):
            value = given[parameter.name]
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                signature[parameter.name] = "constexpr"
                constants[(place,)] = value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = TYPES[value.dtype]
                attributes[(place,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        source = ASTSource(self.function, signature, constants, attributes)
        self.made.append(triton.compile(source, target=self.target, options=options))


@pytest.fixture(params=[86, 90])
def compiling(request, monkeypatch):
    """Replaces a kernel module's kernels by compilers; afterwards, each was compiled, and fits."""
    if backend.is_interpreted():
        pytest.skip("with TRITON_INTERPRET=1 kernels are Python and cannot be compiled")
    compilers = []

    def replace(module, *names):
        for name in names:
            compilers.append(Compiler(getattr(module, name), request.param))
            monkeypatch.setattr(module, name, compilers[-1])
        return module

    yield replace
    for compiler in compilers:
        assert compiler.made, compiler.function
        for made in compiler.made:
            assert made.metadata.shared <= SHARED_BYTES
            assert not any(line.strip().startswith(("atom.", "red.")) for line in made.asm["ptx"].splitlines())
            assert "st.local" not in made.asm["ptx"]


CU, KEPT = offsets([500, 500]), offsets([50, 50])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segment_select_compiles(compiling, dtype):
    module = compiling(select_kernel, "_select")
    module.select(torch.zeros(1000, dtype=dtype), CU, counts([50, 50]), torch.zeros(100).long(), KEPT)


@pytest.mark.parametrize("n", [577, 16384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_select_compiles(compiling, n, dtype):
    module = compiling(greedy_kernel, "_cosines", "_nearest", "_pick_far", "_pick_dpp")
    row, idx = torch.zeros(n), torch.zeros(100).long()
    cosine = torch.zeros(1).expand(n, n)  # its sizes are read and nothing else
    module.cosines(torch.zeros(n, 1024, dtype=dtype), CU, cosine, row)
    module.pick_far(cosine, row, CU, counts([50, 50]), idx)
    module.pick_dpp(cosine, row, cosine[:100], CU, counts([50, 50]), idx, 1e-6)


@pytest.mark.parametrize("width", [64, 72, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attn_colmean_compiles(compiling, width, dtype):
    module = compiling(colmean_kernel, "_row_lse", "_column_share", "_sum_heads")
    q, lse, mean = torch.zeros(1000, 16, width, dtype=dtype), torch.zeros(16, 1000), torch.zeros(1000)
    module.row_lse(q, q, CU, lse, 0.1, 2)
    module.column_mean(q, q, CU, lse, lse, mean, 0.1, 2)


@pytest.mark.parametrize(("heads", "width"), [((16, 16), 72), ((28, 4), 128), ((8, 4), 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_query_scores_compiles(compiling, heads, width, dtype):
    """One query, whose logits are kept, and many, for which the keys are read again."""
    module = compiling(query_kernel, "_row_lse", "_key_share", "_sum_rows")
    k, scores = torch.zeros(2, heads[1], 577, width, dtype=dtype), torch.zeros(2, 577)
    for n_queries in (1, 64):
        q = torch.zeros(2, heads[0], n_queries, width, dtype=dtype)
        parts = torch.zeros(2, heads[0], n_queries, module.n_parts(k))
        if module.keeps_logits(q, k):
            logits = scores[:, None, None].expand(2, heads[0], 1, 577)
            module.row_lse(q, k, parts, logits, 0.1, 0)
            module.row_lse(q, k, None, logits, 0.1, 0)
            module.sum_rows(logits, parts, scores, 0.1, 1)
        else:
            share = scores[:, None].expand(2, heads[0], 577)
            module.row_lse(q, k, parts, None, 0.1, 1)
            module.key_share(q, k, parts, share, 0.1, 0.1)
            module.key_share(q, k, parts[..., :1], share, 0.1, 0.1)
            module.sum_rows(share, None, scores, 1.0, 1)


@pytest.mark.parametrize("is_sum", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_assign_merge_compiles(compiling, dtype, is_sum):
    module = compiling(merge_kernel, "_assign", "_merge", "_merge_backward")
    x, y, whole = torch.zeros(1000, 1024, dtype=dtype), torch.zeros(100, 1024, dtype=dtype), torch.zeros(100)
    idx, assigned, weight = torch.zeros(100).long(), torch.zeros(1000).int(), torch.zeros(1000)
    module.assign(x, idx, CU, KEPT, assigned)
    module.merge(x, idx, CU, KEPT, assigned, weight, y, whole, is_sum=is_sum)
    module.merge_backward(y, x, y, idx, assigned, whole, weight, x, weight, is_sum=is_sum)


@pytest.mark.parametrize("has_extras", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_splice_compiles(compiling, dtype, has_extras):
    module = compiling(splice_kernel, "_splice", "_splice_backward")
    vis, table, emb = (torch.zeros(n, 3584, dtype=dtype) for n in (576, 999, 144))
    idx, ids, layout = torch.zeros(100).long(), torch.zeros(44).long(), torch.zeros(144).int()
    pos, text_pos, places = (torch.zeros(3, n).long() for n in (576, 44, 144))
    extras = (ids, emb[0], torch.zeros(100)) if has_extras else (None, None, None)
    module.splice(vis, table, pos, text_pos, idx, ids, layout, *extras, emb, places, places[0])
    module.splice_backward(emb, vis, idx, layout, extras[2], vis, torch.zeros(100))


@pytest.mark.parametrize(("width", "is_cos"), [(588, False), (2560, True), (16384, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temporal_keep_compiles(compiling, dtype, width, is_cos):
    module = compiling(temporal_kernel, "_change")
    x = torch.zeros(1, dtype=dtype).expand(64, 256, width)
    module.change(x, torch.zeros(64, 256), math.inf, is_cos=is_cos)
