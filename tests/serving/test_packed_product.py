"""Products of a few rows with 4-bit weights: the operator beside bitsandbytes', its kernel, and where the compiler's graph is given it."""

from typing import Any

import pytest
import torch

from efficientllm.serving.packed_matrix_vector import levels
from efficientllm.serving.packed_product import packed_product
from efficientllm.serving.packed_product_pass import PackedProducts
from tests.serving.test_matrix_vector import DEVICES, NEEDS_GPU
from tests.serving.test_packed_matrix_vector import Layer, Packed, quantized

SHAPES = [(64, 33), (320, 96), (1152, 130)]


def drawn(
    device: Any, dtype: torch.dtype, rows: int, width: int, size: int, **how: Any
) -> tuple[torch.Tensor, Packed, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * width)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    matrix = quantized(normal(size, width) / width**0.5, **how)
    return normal(rows, width).to(dtype), matrix, normal(size).to(dtype)


def expected(x: torch.Tensor, matrix: Packed, bias: torch.Tensor | None) -> torch.Tensor:
    out = x.double() @ matrix.weights.double().T
    return out if bias is None else out + bias.double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [2, 7, 64, 65])
def test_the_operator_equals_the_equation(device, rows, with_bias, nested):
    x, matrix, bias = drawn(device, torch.bfloat16, rows, 320, 96, nested=nested)
    bias = bias if with_bias else None
    scales = matrix.nested or (None, None, None)
    found = packed_product(x[:, None], matrix.packed, [96, 320], matrix.absmax, 64, "nf4", bias, *scales)
    assert found.dtype == torch.bfloat16 and found.shape == (rows, 1, 96)
    torch.testing.assert_close(found[:, 0].double(), expected(x, matrix, bias), rtol=2e-2, atol=3e-2)


@pytest.mark.parametrize(("kind", "nested", "block_size"), [("nf4", True, 64), ("nf4", False, 32), ("fp4", True, 64)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize(("width", "size"), SHAPES)
def test_the_kernel_equals_the_equation(triton_device, width, size, rows, with_bias, kind, nested, block_size):
    from efficientllm.serving.packed_product_kernels import launch

    how = {"kind": kind, "nested": nested, "block_size": block_size}
    x, matrix, bias = drawn(triton_device, torch.float16, rows, width, size, **how)
    bias = bias if with_bias else None
    out = torch.full((rows, size), torch.nan, device=triton_device, dtype=torch.float16)
    for _ in range(2):  # a call leaves nothing behind that the next one would count
        launch(
            x, matrix.packed, matrix.absmax, matrix.nested or (None, None, None), levels(kind, triton_device), block_size,
            bias, out,
        )  # fmt: skip
        torch.testing.assert_close(out.double(), expected(x, matrix, bias), rtol=5e-3, atol=5e-3)


@pytest.mark.usefixtures("triton_device")
@pytest.mark.parametrize("batch", [2, 64])
def test_a_matrix_is_split_where_that_fills_the_multiprocessors(batch):
    from efficientllm.serving.packed_product_kernels import best_parts

    def most_tiles(groups, tiles):
        parts = best_parts(groups, tiles, 132, batch)
        assert 1 <= parts <= tiles
        return -(-groups * parts // 132) * -(-tiles // parts)

    assert most_tiles(8, 28) <= 4  # of few rows, by one part each it would be 28
    assert most_tiles(296, 28) < 3 * 28  # some would have three programs, and some two
    assert best_parts(4 * 132, 28, 132, batch) == 1
    assert best_parts(5, 1, 132, batch) == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("nested", [False, True])
def test_what_the_compiler_is_told_is_so(device, nested):
    x, matrix, bias = drawn(device, torch.bfloat16, 3, 64, 32, nested=nested)
    scales = matrix.nested or (None, None, None)
    arguments = (x, matrix.packed, [32, 64], matrix.absmax, 64, "nf4", bias, *scales)
    torch.library.opcheck(packed_product, arguments)


class Calls(PackedProducts):
    """Notes the products in each graph, and how many bitsandbytes is left with."""

    def __init__(self) -> None:
        self.met: list[tuple[int, int]] = []

    def __call__(self, graph: torch.fx.Graph) -> None:
        super().__call__(graph)
        graph.lint()
        names = [str(node.target) for node in graph.nodes]
        self.met.append((sum("packed_product" in name for name in names), sum("gemm_4bit" in name for name in names)))

    def uuid(self) -> None:  # type: ignore[override]
        """The compiler caches nothing, so that this is called."""


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_products_are_the_engines_own(bias: bool, nested: bool) -> None:
    torch.manual_seed(0)
    layer = Layer(bias, nested).eval().to(torch.bfloat16)
    torch._dynamo.reset()
    recorded = Calls()
    compiled = torch.compile(layer, dynamic=True, options={"post_grad_custom_pre_pass": recorded})
    with torch.inference_mode():
        for rows in (3, 5):
            x = torch.randn(rows, 1, 64).to(torch.bfloat16)
            torch.testing.assert_close(compiled(x), layer(x), rtol=3e-2, atol=3e-2)
    assert recorded.met == [(7, 0)]
