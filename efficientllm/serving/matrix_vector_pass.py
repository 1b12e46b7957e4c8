"""Gives the compiler's graph of a decoding step own products for a single row, with what stands around them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.pattern_matcher import MULTIPLE, CallFunction, Ignored, KeywordArg, PatternExpr
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from efficientllm.serving.matrix_vector import MOST_MATRICES, matrix_vector
from efficientllm.serving.packed_matrix_vector import packed_matrix_vector
from efficientllm.serving.packed_product_pass import is_packed_product, packed_arguments

_aten, _convert = torch.ops.aten, torch.ops.prims.convert_element_type.default
_VIEWS = [_aten.reshape.default, _aten.view.default, _aten._unsafe_view.default]
_ADDS = [_aten.add.Tensor, _aten.add.Scalar]
_CALL, _PACKED_CALL = matrix_vector._opoverload, packed_matrix_vector._opoverload
_TYPES = (torch.bfloat16, torch.float16, torch.float32)

_MATRIX = CallFunction(_aten.permute.default, KeywordArg("weight"), [1, 0], _users=MULTIPLE)
_PRODUCTS: tuple[PatternExpr, ...] = (
    CallFunction(_aten.mm.default, KeywordArg("row"), _MATRIX, _users=MULTIPLE),
    CallFunction(_aten.addmm.default, KeywordArg("bias"), KeywordArg("row"), _MATRIX, _users=MULTIPLE),
)
_INPUT = CallFunction(_convert, KeywordArg("x"), torch.float32, _users=MULTIPLE)
_SQUARES = CallFunction(_aten.pow.Tensor_Scalar, _INPUT, 2)
_VARIANCE = CallFunction(_ADDS, CallFunction(_aten.mean.dim, _SQUARES, KeywordArg("dims"), True), KeywordArg("epsilon"))
_NORMALIZED = CallFunction(_aten.mul.Tensor, _INPUT, CallFunction(_aten.rsqrt.default, _VARIANCE))
_NORM = CallFunction(
    _convert, CallFunction(_aten.mul.Tensor, _NORMALIZED, KeywordArg("gain")), Ignored(), _users=MULTIPLE
)
"""RMSNorm of a 16-bit tensor."""


def _silu_product(gate: PatternExpr, up: PatternExpr) -> PatternExpr:
    """silu(gate) * up of 16-bit tensors."""
    x = CallFunction(_convert, gate, torch.float32, _users=MULTIPLE)
    divisor = CallFunction(_ADDS, CallFunction(_aten.exp.default, CallFunction(_aten.neg.default, x)), 1)
    silu = CallFunction(_convert, CallFunction(_aten.div.Tensor, x, divisor), Ignored())
    return CallFunction(_aten.mul.Tensor, silu, up, _users=MULTIPLE)


_SWIGLU = (
    _silu_product(
        CallFunction(_VIEWS, KeywordArg("gate"), Ignored()), CallFunction(_VIEWS, KeywordArg("up"), Ignored())
    ),
    _silu_product(KeywordArg("gate"), KeywordArg("up")),
)
_SCALES = ("absmax", "absmax_8bit", "absmax_code", "absmax_offset")


@dataclass(frozen=True)
class _Product:
    """A product of one row; `packing` is how a matrix of 4-bit weights is stored, None for plain weights."""

    node: Node
    row: Node
    weight: Node
    bias: Node | None
    packing: tuple[Any, ...] | None = None
    scales: tuple[Node | None, ...] = ()


class MatrixVectorProducts(CustomGraphPass):
    """Writes products of one row `[1, C]` as `matrix_vector`, with which they take their weights' reading and little more.

    Products of the same row are one call. An RMSNorm before them, SwiGLU's gate behind them and what is added to their result
    go along where nothing else needs what is between. Batches of such products, each with a small matrix of its own (a head's,
    in latent attention), become loops that the compiler writes.
    """

    def __call__(self, graph: Graph) -> None:
        """Rewrites a graph in place."""
        for node in graph.find_nodes(op="call_function", target=_aten.bmm.default):
            if statically_known_true(_value(node.args[0]).shape[1] == 1):
                _write_loop(graph, node)
        of_row: dict[tuple[Node, Any], list[Node]] = defaultdict(list)
        for node in graph.nodes:
            if (product := _product(node)) is not None:
                of_row[_origin(product.row), product.packing].append(node)
        for nodes in of_row.values():
            # anew, since what is written for one product may be the row of another
            products = [product for node in nodes if (product := _product(node)) is not None]
            norm = _norm(_origin(products[0].row), products)
            for first in range(0, len(products), MOST_MATRICES):
                _write(graph, products[first : first + MOST_MATRICES], norm)
        graph.eliminate_dead_code()

    def uuid(self) -> bytes:
        """Identifies the pass for the compiler's cache."""
        return get_hash_for_files((__file__,))


def _arguments(pattern: PatternExpr, node: Node) -> dict[str, Any] | None:
    match = pattern.match(node)
    return match.kwargs if match else None


def _value(node: Node) -> torch.Tensor:
    value: torch.Tensor = node.meta["val"]
    return value


def _product(node: Node) -> _Product | None:
    """A product of one row with a matrix that is an input of the graph."""
    if is_packed_product(node):
        return _packed_product(node)
    for pattern in _PRODUCTS:
        if (found := _arguments(pattern, node)) is None:
            continue
        row, weight, bias = found["row"], found["weight"], found.get("bias")
        one = _value(row).dim() == 2 and statically_known_true(_value(row).shape[0] == 1)
        types = {_value(x).dtype for x in (row, weight, node)}
        plain = weight.op in ("placeholder", "get_attr") and _value(weight).is_contiguous()
        if one and plain and len(types) == 1 and types <= set(_TYPES):
            return _Product(node, row, weight, bias)
    return None


def _packed_product(node: Node) -> _Product | None:
    """A product of one row with packed weights, whose blocks do not reach over the matrix' rows."""
    given = packed_arguments(node)
    row, packed, (_, width), block_size = (given[name] for name in ("A", "B", "shapeB", "blocksize"))
    one = statically_known_true(_value(row).numel() == width)
    if not one or _value(packed).dtype != torch.uint8 or width % block_size or _value(row).dtype not in _TYPES:
        return None
    scales = tuple(given[name] for name in _SCALES)
    packing = (block_size, given["quant_type"], scales[1] is not None)
    return _Product(node, row, packed, given["bias"], packing, scales)


def _origin(row: Node) -> Node:
    while row.op == "call_function" and row.target in _VIEWS and isinstance(row.args[0], Node):
        row = row.args[0]
    return row


def _norm(origin: Node, products: Sequence[_Product]) -> dict[str, Any] | None:
    """The RMSNorm that `origin` is, if these products alone need it."""
    found = _arguments(_NORM, origin)
    if found is None or not set(_uses(origin)) <= {user for product in products for user in product.row.users}:
        return None
    value = _value(origin)
    over_the_row = statically_known_true(value.numel() == value.shape[-1])  # not over each head
    return found if over_the_row and [dim % value.dim() for dim in found["dims"]] == [value.dim() - 1] else None


def _uses(node: Node) -> Iterator[Node]:
    """What reads a tensor, through views."""
    for user in node.users:
        if user.target in _VIEWS:
            yield from _uses(user)
        else:
            yield user


def _write(graph: Graph, products: Sequence[_Product], norm: dict[str, Any] | None) -> None:
    """Puts one call in the place of products of the same row."""
    first, swiglu = products[0], _swiglu(products)
    replaced, addend = (first.node, None) if len(products) > 1 else _sum(first)
    if swiglu is not None:
        replaced = swiglu
    with graph.inserting_before(replaced):
        row = _row(graph, first.row if norm is None else norm["x"])
        gain, epsilon = (None, 0.0) if norm is None else (norm["gain"], float(norm["epsilon"]))
        weights = [product.weight for product in products]
        added = None if addend is None else _row(graph, addend)
        around = (gain, epsilon, added, swiglu is not None)
        if first.packing is None:
            result = graph.call_function(_CALL, (row, weights, *around))
        else:
            scales = [[x for x in of if x is not None] for of in zip(*(p.scales for p in products), strict=True)]
            sizes = [_value(product.node).shape[-1] for product in products]
            result = graph.call_function(_PACKED_CALL, (row, weights, sizes, *scales, *first.packing[:2], *around))
        if swiglu is not None or len(products) == 1:
            shaped = graph.call_function(_aten.reshape.default, (result, list(_value(replaced).shape)))
            _replace(replaced, shaped)
            return
    start = 0
    for product in products:
        end = start + _value(product.node).shape[-1]
        with graph.inserting_before(product.node):
            part = graph.call_function(_aten.slice.Tensor, (result, 1, start, end))
            part = graph.call_function(_aten.reshape.default, (part, list(_value(product.node).shape)))
            if product.bias is not None:
                part = graph.call_function(_aten.add.Tensor, (part, product.bias))
        _replace(product.node, part)
        start = end


def _write_loop(graph: Graph, node: Node) -> None:
    """Puts a sum of products in the place of a batched one `[N, 1, K]` by `[N, K, J]`."""
    rows, matrices = node.args
    with graph.inserting_before(node):
        columns = graph.call_function(_aten.unsqueeze.default, (rows, 3))
        stacked = graph.call_function(_aten.unsqueeze.default, (matrices, 1))
        total = graph.call_function(_aten.mul.Tensor, (columns, stacked))
        total = graph.call_function(_aten.sum.dim_IntList, (total, [2]))
    _replace(node, total)


def _replace(node: Node, other: Node) -> None:
    other.meta["val"] = _value(node)
    node.replace_all_uses_with(other)


def _row(graph: Graph, node: Node) -> Node:
    return graph.call_function(_aten.reshape.default, (node, [1, _value(node).numel()]))


def _swiglu(products: Sequence[_Product]) -> Node | None:
    """The node of SwiGLU's gated product, if gate and up projection are all that there is."""
    if len(products) != 2 or any(product.bias is not None for product in products):
        return None
    nodes = [product.node for product in products]
    for user in _uses(nodes[1]):
        for pattern in _SWIGLU:
            found = _arguments(pattern, user)
            if found is not None and [found["gate"], found["up"]] == nodes:
                return user if all(len(node.users) == 1 for node in nodes) else None
    return None


def _sum(product: _Product) -> tuple[Node, Node | None]:
    """The node of a product and of what is added to it: a bias, or the residual stream."""
    if product.bias is not None:
        return product.node, product.bias
    uses = list(_uses(product.node))
    if len(uses) == 1 and uses[0].target == _aten.add.Tensor and not uses[0].kwargs:
        others = [x for x in uses[0].args if isinstance(x, Node) and _origin(x) is not product.node]
        own = _value(product.node)
        if others and all(
            statically_known_true(_value(x).numel() == own.numel()) and _value(x).dtype == own.dtype
            for x in (*others, uses[0])
        ):
            return uses[0], others[0]
    return product.node, None
