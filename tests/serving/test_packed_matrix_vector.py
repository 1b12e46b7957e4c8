"""Products of 4-bit weights and one vector: as bitsandbytes has them, by the operator, its kernel and in the compiler's graph."""

from typing import Any, NamedTuple

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch.nn import functional as F

from efficientllm.models.norms import RMSNorm
from efficientllm.serving.packed_matrix_vector import levels, packed_matrix_vector, unpacked
from tests.serving.test_matrix_vector import DEVICES, Recorded, expected

CALL = "efficientllm.packed_matrix_vector.default"
SHAPES = [(64, (33,)), (128, (32, 16, 16)), (320, (7, 9)), (5184, (12, 3, 2))]


class Packed(NamedTuple):
    """A quantized matrix: what the operator takes of it, and its weights as bitsandbytes writes them out."""

    packed: torch.Tensor
    absmax: torch.Tensor
    nested: tuple[torch.Tensor, ...]
    block_size: int
    kind: str
    weights: torch.Tensor
    shape: torch.Size


def quantized(weights: torch.Tensor, *, kind: str = "nf4", nested: bool = True, block_size: int = 64) -> Packed:
    packed, state = quantize_4bit(weights, blocksize=block_size, compress_statistics=nested, quant_type=kind)
    written_out = dequantize_4bit(packed, state)
    rest: tuple[torch.Tensor, ...] = ()
    if nested:
        assert state.state2.blocksize == 256
        rest = (state.absmax, state.state2.code, state.offset)
    absmax = state.state2.absmax if nested else state.absmax
    return Packed(packed, absmax, rest, block_size, kind, written_out, state.shape)


def operands(matrices: list[Packed]) -> tuple[Any, ...]:
    """Of all matrices: packed weights, sizes and scales, as the operator and the kernel take them."""
    nested = list(zip(*(m.nested for m in matrices), strict=True)) or [(), (), ()]
    packed, sizes = [m.packed for m in matrices], [m.shape[0] for m in matrices]
    return packed, sizes, [m.absmax for m in matrices], *(list(of) for of in nested)


def drawn(
    device: Any, dtype: torch.dtype, width: int, sizes: tuple[int, ...], gated: bool, with_rest: bool, **how: Any
) -> tuple[torch.Tensor, list[Packed], torch.Tensor | None, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(width)
    if gated:
        sizes = sizes[:1] * 2

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    matrices = [quantized(normal(size, width).float() / width**0.5, **how) for size in sizes]
    rest = (normal(width), normal(1, sizes[0] if gated else sum(sizes))) if with_rest else (None, None)
    return normal(1, width), matrices, *rest


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_are_read_as_bitsandbytes_wrote_them(device, kind, nested, block_size):
    weights = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)).to(device)
    matrix = quantized(weights, kind=kind, nested=nested, block_size=block_size)
    found = unpacked(matrix.packed, matrix.absmax, matrix.nested or None, block_size, kind)
    torch.testing.assert_close(found.view(300, 256), matrix.weights, rtol=1e-6, atol=1e-7)
    assert matrix.weights.unique().numel() > 1000


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("with_rest", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("width", "sizes"), SHAPES)
def test_the_operator_equals_the_equation(device, width, sizes, gated, with_rest, nested):
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    row, matrices, gain, addend = drawn(device, dtype, width, sizes, gated, with_rest, nested=nested)
    found = packed_matrix_vector(row, *operands(matrices), 64, "nf4", gain, 1e-5, addend, gated)
    assert found.dtype == dtype
    wanted = expected(row, [m.weights for m in matrices], gain, addend, gated)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if device == "cuda" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.double(), wanted, **tolerance)


@pytest.mark.parametrize(("kind", "nested", "block_size"), [("nf4", True, 64), ("nf4", False, 32), ("fp4", True, 128)])
@pytest.mark.parametrize("with_rest", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("width", "sizes"), [(128, (33,)), (384, (32, 16, 5)), (5248, (9, 3))])
def test_the_kernel_equals_the_equation(triton_device, width, sizes, gated, with_rest, kind, nested, block_size):
    from efficientllm.serving.packed_matrix_vector_kernels import launch

    how = {"kind": kind, "nested": nested, "block_size": block_size}
    row, matrices, gain, addend = drawn(triton_device, torch.float32, width, sizes, gated, with_rest, **how)
    wanted = expected(row, [m.weights for m in matrices], gain, addend, gated)
    out = torch.full(wanted.shape, torch.nan, device=triton_device)
    table = levels(kind, triton_device)
    launch(row[0], *operands(matrices), table, block_size, out, gain=gain, epsilon=1e-5, addend=addend, gated=gated)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nested", [False, True])
def test_what_the_compiler_is_told_is_so(device, nested):
    for gated in (False, True):
        row, matrices, gain, addend = drawn(device, torch.float32, 64, (32, 16), gated, True, nested=nested)
        arguments = (row, *operands(matrices), 64, "nf4", gain, 1e-5, addend, gated)
        torch.library.opcheck(packed_matrix_vector, arguments)


class Linear(torch.nn.Module):
    """The product as bitsandbytes' layer computes it on a GPU; on a CPU that rearranges its weights."""

    def __init__(self, inputs: int, outputs: int, bias: bool, nested: bool) -> None:
        super().__init__()
        matrix = quantized(torch.randn(outputs, inputs) / inputs**0.5, nested=nested)
        self.packed, self.absmax, self.shape = matrix.packed, matrix.absmax, list(matrix.shape)
        self.how = {
            "blocksize": matrix.block_size,
            "quant_type": matrix.kind,
            "bias": torch.randn(outputs).to(torch.bfloat16) if bias else None,
            **dict(zip(("absmax_8bit", "absmax_code", "absmax_offset"), matrix.nested, strict=nested)),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = torch.ops.bitsandbytes.gemm_4bit.default
        out: torch.Tensor = product(x, self.packed.view(-1, 1), self.shape, self.absmax, **self.how)
        return out


class Layer(torch.nn.Module):
    """A layer's products: three of the same normalized vector, and SwiGLU's."""

    def __init__(self, bias: bool, nested: bool) -> None:
        super().__init__()
        self.first_norm, self.second_norm = RMSNorm(64), RMSNorm(64)
        self.query, self.key, self.value = (Linear(64, size, bias, nested) for size in (96, 16, 16))
        self.out = Linear(128, 64, bias, nested)
        self.gate, self.up = (Linear(64, 192, False, nested) for _ in range(2))
        self.down = Linear(192, 64, False, nested)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalized = self.first_norm(x)
        q, k, v = self.query(normalized), self.key(normalized), self.value(normalized)
        x = x + self.out(torch.cat((q.sin(), k.cos(), v), dim=-1))
        normalized = self.second_norm(x)
        return x + self.down(F.silu(self.gate(normalized)) * self.up(normalized))


class Calls(Recorded):
    """Notes the calls for packed weights in each graph, and how many products bitsandbytes is left with."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        super().__call__(graph)
        found = [node.args for node in graph.nodes if str(node.target) == CALL]
        calls = [(len(a[1]), a[9] is not None, a[11] is not None, a[12]) for a in found]
        self.met[-1] = (calls, sum("gemm_4bit" in str(node.target) for node in graph.nodes))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_packed_products_take_along_what_stands_around_them(rows, bias, nested):
    torch.manual_seed(0)
    layer = Layer(bias, nested).eval().to(torch.bfloat16)
    x = torch.randn(rows, 1, 64).to(torch.bfloat16)
    torch._dynamo.reset()
    recorded = Calls()
    compiled = torch.compile(layer, dynamic=True, options={"post_grad_custom_pre_pass": recorded})
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), layer(x), rtol=3e-2, atol=3e-2)
    first = [(3, True, False, False), (1, False, True, False)]
    own = [*first, (2, True, False, True), (1, False, True, False)]
    assert recorded.met == [(own, 0) if rows == 1 else ([], 7)]
