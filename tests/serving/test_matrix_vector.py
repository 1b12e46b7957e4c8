"""Products of matrices and one vector: the operator, its kernel, and where the compiler's graph is given them."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from efficientllm.models.norms import RMSNorm
from efficientllm.serving.engine import single_sequence_options
from efficientllm.serving.matrix_vector import matrix_vector
from efficientllm.serving.matrix_vector_pass import MatrixVectorProducts
from tests.models.conftest import FAMILIES, decoder_of

CALL = "efficientllm.matrix_vector.default"
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
SHAPES = [(48, (33,)), (64, (32, 16, 16)), (100, (7, 9)), (300, (40, 1, 5)), (5000, (12, 3))]


def expected(
    row: torch.Tensor, weights: list[torch.Tensor], gain: torch.Tensor | None, addend: torch.Tensor | None, gated: bool
) -> torch.Tensor:
    x = row.double()
    if gain is not None:
        x = x / (x.square().mean() + 1e-5).sqrt() * gain.double()
    products = [x @ weight.double().T for weight in weights]
    out = products[0] / (1 + (-products[0]).exp()) * products[1] if gated else torch.cat(products, dim=1)
    return out if addend is None else out + addend.double()


def drawn(
    device: Any, dtype: torch.dtype, width: int, sizes: tuple[int, ...], gated: bool, with_rest: bool
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(width)
    if gated:
        sizes = sizes[:1] * 2

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    weights = [normal(size, width) / width**0.5 for size in sizes]
    rest = (normal(width), normal(1, sizes[0] if gated else sum(sizes))) if with_rest else (None, None)
    return normal(1, width), weights, *rest


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_rest", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("width", "sizes"), SHAPES)
def test_the_operator_equals_the_equation(device, width, sizes, gated, with_rest):
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    row, weights, gain, addend = drawn(device, dtype, width, sizes, gated, with_rest)
    found = matrix_vector(row, weights, gain, 1e-5, addend, gated)
    assert found.dtype == dtype
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if device == "cuda" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.double(), expected(row, weights, gain, addend, gated), **tolerance)


@pytest.mark.parametrize("with_rest", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("width", "sizes"), SHAPES)
def test_the_kernel_equals_the_equation(triton_device, width, sizes, gated, with_rest):
    from efficientllm.serving.matrix_vector_kernels import launch

    row, weights, gain, addend = drawn(triton_device, torch.float32, width, sizes, gated, with_rest)
    wanted = expected(row, weights, gain, addend, gated)
    out = torch.full(wanted.shape, torch.nan, device=triton_device)
    launch(row[0], weights, out, gain=gain, epsilon=1e-5, addend=addend, gated=gated)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-5)


def test_numbers_that_lie_apart_are_read_where_they_lie(triton_device):
    from efficientllm.serving.matrix_vector_kernels import launch

    row, weights, gain, addend = drawn(triton_device, torch.float32, 64, (32,), False, True)
    row, gain = (torch.stack((x, -x), dim=-1)[..., 0] for x in (row, gain))
    addend = addend[:, :1].expand(1, 32)
    out = torch.full((1, 32), torch.nan, device=triton_device)
    launch(row[0], weights, out, gain=gain, epsilon=1e-5, addend=addend)
    torch.testing.assert_close(out.double(), expected(row, weights, gain, addend, False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_compiler_is_told_is_so(device):
    for gated in (False, True):
        row, weights, gain, addend = drawn(device, torch.float32, 64, (32, 16), gated, True)
        torch.library.opcheck(matrix_vector, (row, weights, gain, 1e-5, addend, gated))


class Attention(torch.nn.Module):
    """What stands around a layer's products, with an RMSNorm before them."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(64)
        self.query, self.key, self.value = (torch.nn.Linear(64, size, bias=bias) for size in (32, 16, 16))
        self.out = torch.nn.Linear(64, 64, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalized = self.norm(x)
        q, k, v = self.query(normalized), self.key(normalized), self.value(normalized)
        return x + self.out(torch.cat((q.sin(), k.cos(), v), dim=-1))


class SwiGLU(torch.nn.Module):
    """The gated layer, behind a norm and added to the residual stream."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(64)
        self.gate, self.up = (torch.nn.Linear(64, 96, bias=bias) for _ in range(2))
        self.down = torch.nn.Linear(96, 64, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalized = self.norm(x)
        return x + self.down(F.silu(self.gate(normalized)) * self.up(normalized))


def calls(graph: torch.fx.Graph) -> list[tuple[int, bool, bool, bool]]:
    """Matrices of each call, and whether it has a norm, something added, a gate."""
    found = []
    for node in graph.nodes:
        if str(node.target) == CALL:
            _, weights, gain, _, addend, gated = node.args
            found.append((len(weights), gain is not None, addend is not None, gated))
    return found


def products(graph: torch.fx.Graph) -> int:
    """Products that are left to a library."""
    return sum(any(name in str(node.target) for name in (".mm.", "bmm", "addmm")) for node in graph.nodes)


class Recorded(MatrixVectorProducts):
    """Notes what the pass made of each graph."""

    def __init__(self) -> None:
        self.met: list[tuple[list[tuple[int, bool, bool, bool]], int]] = []

    def __call__(self, graph: torch.fx.Graph) -> None:
        super().__call__(graph)
        graph.lint()
        self.met.append((calls(graph), products(graph)))

    def uuid(self) -> None:  # type: ignore[override]
        """The compiler caches nothing, so that this is called."""


def compiled(layer: torch.nn.Module, x: torch.Tensor) -> tuple[list[tuple[int, bool, bool, bool]], int]:
    """Calls and remaining products of a compiled layer, which computes what it does without."""
    torch._dynamo.reset()
    recorded = Recorded()
    fast = torch.compile(layer, dynamic=True, options={"post_grad_custom_pre_pass": recorded})
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), layer(x), rtol=2e-2, atol=2e-2)
    (met,) = recorded.met
    return met


def made(layer: type[torch.nn.Module], bias: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    return layer(bias).eval().to(torch.bfloat16)


@pytest.mark.parametrize(
    ("layer", "bias", "expected"),
    [
        (Attention, False, [(3, True, False, False), (1, False, True, False)]),
        (Attention, True, [(3, True, False, False), (1, False, True, False)]),
        (SwiGLU, False, [(2, True, False, True), (1, False, True, False)]),
        (SwiGLU, True, [(2, True, False, False), (1, False, True, False)]),
    ],
)
def test_products_take_along_what_stands_around_them(layer, bias, expected):
    assert compiled(made(layer, bias), torch.randn(1, 1, 64).to(torch.bfloat16)) == (expected, 0)


def test_a_norm_whose_result_something_else_needs_stays(monkeypatch):
    layer = made(Attention, False)

    def forward(x: torch.Tensor) -> torch.Tensor:
        normalized: torch.Tensor = layer.norm(x)
        return normalized + layer.out(normalized)

    monkeypatch.setattr(layer, "forward", forward)
    assert compiled(layer, torch.randn(1, 1, 64).to(torch.bfloat16)) == ([(1, False, True, False)], 0)


def test_a_norm_over_parts_of_the_row_stays():
    class Heads(torch.nn.Module):
        def __init__(self, bias: bool) -> None:
            super().__init__()
            self.norm, self.out = RMSNorm(16), torch.nn.Linear(64, 64, bias=bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.out(self.norm(x.view(1, 1, 4, 16)).flatten(2))

    assert compiled(made(Heads, False), torch.randn(1, 1, 64).to(torch.bfloat16)) == ([(1, False, True, False)], 0)


@pytest.mark.parametrize(("rows", "left"), [(1, 0), (2, 1)])
def test_batches_of_single_rows_are_loops(rows: int, left: int) -> None:
    class Heads(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ matrices

    torch.manual_seed(0)
    matrices = torch.randn(4, 48, 32).to(torch.bfloat16)
    assert compiled(Heads(), torch.randn(4, rows, 48).to(torch.bfloat16)) == ([], left)


def test_several_rows_are_left_alone() -> None:
    assert compiled(made(Attention, True), torch.randn(2, 1, 64).to(torch.bfloat16)) == ([], 4)


@pytest.mark.parametrize("name", ["gqa", "mla", "pythia", "mamba2", "rwkv"])
def test_compiled_blocks_compute_the_same_with_own_products(name: str) -> None:
    torch._dynamo.reset()
    decoder = decoder_of(**FAMILIES[name])  # RWKV-7's initial weights would leave the residual stream as it is
    tokens = torch.randint(61, (1, 8))
    recorded = Recorded()
    found = []
    with torch.inference_mode():
        for options in (None, {"post_grad_custom_pre_pass": recorded}):
            decoder.decode_uncompiled()
            cache = decoder.new_cache(1, 16)
            decoder(tokens[:, :5], cache=cache)
            if options is not None:
                decoder.compile_decoding(options)
            found.append(torch.cat([decoder(tokens[:, t : t + 1], cache=cache).logits for t in range(5, 8)]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert recorded.met and min(len(made) for made, _ in recorded.met) >= 3


def test_engines_of_one_process_share_their_programs() -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            compiled = torch.compile(doubled, dynamic=True, options=single_sequence_options())
            torch.testing.assert_close(compiled(torch.ones(3)), torch.full((3,), 2.0))
