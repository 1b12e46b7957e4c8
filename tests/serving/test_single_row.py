"""Products of one row, as the compiler is given them."""

from collections.abc import Callable

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from efficientllm.serving.engine import single_sequence_options
from efficientllm.serving.single_row import SingleRowProducts


def products(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if "mm" in str(node.target)]


def traced(inputs: tuple[torch.Tensor, ...]) -> torch.fx.GraphModule:
    """The graph of a layer as the compiler has it, after what it takes apart by itself."""
    layer: Callable[..., torch.Tensor] = F.linear
    return make_fx(layer, decomposition_table=select_decomp_table(), tracing_mode="fake")(*inputs)


@pytest.mark.parametrize("rows", [1, 2])
def test_only_a_single_row_with_a_bias_is_rewritten_and_is_the_same_product(rows: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(rows, 1, 64), torch.randn(32, 64), torch.randn(32)
    module = traced(inputs)
    assert products(module.graph) == ["aten.addmm.default"]
    SingleRowProducts()(module.graph)
    module.graph.lint()
    module.recompile()
    assert products(module.graph) == ([] if rows == 1 else ["aten.addmm.default"])
    torch.testing.assert_close(module(*inputs), F.linear(*inputs))


def test_on_a_gpu_the_compiler_itself_leaves_only_products_with_biases() -> None:
    """The reason for the pass: gone when PyTorch treats both alike."""
    with torch._inductor.config.patch(coordinate_descent_tuning=True), FakeTensorMode(), torch.inference_mode():
        row, weight, bias = (torch.empty(*shape, device="cuda") for shape in ((1, 1, 64), (32, 64), (32,)))
        graphs = [
            make_fx(F.linear, decomposition_table=select_decomp_table())(*inputs).graph
            for inputs in ((row, weight), (row, weight, bias))
        ]
    assert [products(graph) for graph in graphs] == [[], ["aten.addmm.default"]]


def test_a_compiled_layer_gives_the_same() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32).eval()
    met: list[list[str]] = []

    class Recorded(SingleRowProducts):
        def __call__(self, graph: torch.fx.Graph) -> None:
            super().__call__(graph)
            met.append(products(graph))

        def uuid(self) -> None:  # type: ignore[override]
            """The compiler caches nothing, so that this is called."""

    options = {"coordinate_descent_tuning": True, "post_grad_custom_pre_pass": Recorded()}
    compiled = torch.compile(layer, dynamic=True, options=options)
    with torch.inference_mode():
        for rows in (1, 3):
            inputs = torch.randn(rows, 1, 64)
            torch.testing.assert_close(compiled(inputs), layer(inputs))
    assert len(met) == 2 and met[0] == [] and met[1] != []


def test_engines_of_one_process_share_their_programs() -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            compiled = torch.compile(doubled, dynamic=True, options=single_sequence_options())
            torch.testing.assert_close(compiled(torch.ones(3)), torch.full((3,), 2.0))
