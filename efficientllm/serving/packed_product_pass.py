"""Gives the compiler's graph of a decoding step own products for 4-bit weights."""

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

from efficientllm.serving.packed_product import packed_product


class PackedProducts(CustomGraphPass):
    """Writes bitsandbytes' products with 4-bit weights as `packed_product`, which takes the same arguments."""

    def __call__(self, graph: Graph) -> None:
        """Rewrites a graph in place."""
        for node in graph.nodes:
            if is_packed_product(node):
                with graph.inserting_before(node):
                    own = graph.call_function(packed_product._opoverload, tuple(packed_arguments(node).values()))
                own.meta["val"] = node.meta["val"]
                node.replace_all_uses_with(own)
                graph.erase_node(node)

    def uuid(self) -> bytes:
        """Identifies the pass for the compiler's cache."""
        return get_hash_for_files((__file__,))


def is_packed_product(node: Node) -> bool:
    """Whether a node is bitsandbytes' product with 4-bit weights."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.name() == "bitsandbytes::gemm_4bit"


def packed_arguments(node: Node) -> dict[str, Any]:
    """All arguments of such a product, in their order."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return dict.fromkeys(names) | dict(zip(names, node.args, strict=False)) | node.kwargs
