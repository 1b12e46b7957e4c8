"""The compiler's own products, for decoding a single sequence, also where a layer has biases."""

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx.experimental.symbolic_shapes import statically_known_true

_WITH_BIAS = torch.ops.aten.addmm.default


class SingleRowProducts(CustomGraphPass):
    """Writes a product of one row with a matrix, plus a bias, as what the compiler makes its own loop of.

    With `coordinate_descent_tuning` Inductor writes products without a bias so (`aten.mm`, whose one row is read once and
    whose weights stream), and leaves those with one to a library, whose kernels are made for many rows. Without this pass
    an architecture would decode slower for having biases.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Rewrites a graph in place."""
        for node in graph.find_nodes(op="call_function", target=_WITH_BIAS):
            bias, row, matrix = node.args
            if node.kwargs or not statically_known_true(row.meta["val"].shape[0] == 1):
                continue
            with graph.inserting_before(node):
                column = graph.call_function(torch.ops.aten.unsqueeze.default, (row, 2))
                stacked = graph.call_function(torch.ops.aten.unsqueeze.default, (matrix, 0))
                products = graph.call_function(torch.ops.aten.mul.Tensor, (column, stacked))
                total = graph.call_function(torch.ops.aten.sum.dim_IntList, (products, [1]))
                node.replace_all_uses_with(graph.call_function(torch.ops.aten.add.Tensor, (total, bias)))
            graph.erase_node(node)

    def uuid(self) -> bytes:
        """Identifies the pass for the compiler's cache."""
        return get_hash_for_files((__file__,))
