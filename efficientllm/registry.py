"""Every row of the ranking: which technique it is, in which group it competes, and which cell is measured for it.

A *cell* is one trained or quantized model, one DVC stage instance. Several rows may share a cell: the medium dense
model is at once the GQA row, the RoPE row and the Transformer row. Adding a technique adds one `Row` here (or one
`Method` or `Precision`) and one file under `components/`, `tuning/methods/` or `quantization/precisions/`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Axis = Literal["pretrain", "tune", "quantize"]
AXES: tuple[Axis, ...] = ("pretrain", "tune", "quantize")
AXIS_LABELS: dict[str, str] = {
    "pretrain": "Architecture Pretraining Efficiency",
    "tune": "Training & Tuning Efficiency",
    "quantize": "Bit-Width Quantization",
}


@dataclass(frozen=True)
class Row:
    """One line of the ranking table.

    Args:
        axis: Section of the table.
        group: Key of the rows that it is ranked against.
        group_label: The group's name on the page.
        technique: Key of the technique, unique within its group.
        label: The technique's name on the page.
        cell: Name of the measured cell, for example `dense_medium` or `lora-small`.
        paper_label: The technique's name in the ranking table of EfficientLLM (arXiv 2505.13840), where it has one.
    """

    axis: Axis
    group: str
    group_label: str
    technique: str
    label: str
    cell: str
    paper_label: str | None = None


@dataclass(frozen=True)
class Technique:
    """A tuning method or a precision: a row in each size's group.

    Args:
        key: Name in parameters, files and stage names.
        label: Name on the page.
        reference: The publication or library that defines it.
        paper_label: Its name in the paper's ranking table, where it has one.
    """

    key: str
    label: str
    reference: str
    paper_label: str | None = None


_ATTENTION = ("attention", "Attention Mechanism")
_POSITION = ("position", "Efficient Positional Encoding")
_MOE = ("moe", "MoE Mechanism")
_FAMILY = ("family", "Attention-free Mechanism")


def _pretrain(group: tuple[str, str], technique: str, label: str, cell: str, paper_label: str | None) -> Row:
    return Row("pretrain", group[0], group[1], technique, label, cell, paper_label)


ARCHITECTURE_ROWS: tuple[Row, ...] = (
    _pretrain(_ATTENTION, "mqa", "MQA", "mqa", "MQA"),
    _pretrain(_ATTENTION, "gqa", "GQA", "dense_medium", "GQA"),
    _pretrain(_ATTENTION, "mla", "MLA", "mla", "MLA"),
    _pretrain(_ATTENTION, "nsa", "NSA", "nsa", "NSA"),
    _pretrain(_ATTENTION, "mha", "MHA", "mha", None),
    _pretrain(_POSITION, "rope", "RoPE", "dense_medium", "RoPE"),
    _pretrain(_POSITION, "sinusoidal", "Absolute", "sinusoidal", "Absolute"),
    _pretrain(_POSITION, "learned", "Learnable Absolute", "learned", "Learnable Absolute"),
    _pretrain(_POSITION, "relative", "Relative", "relative", "Relate"),
    _pretrain(_POSITION, "none", "None", "no_position", None),
    _pretrain(_MOE, "dense_small", "Dense small", "dense_small", None),
    _pretrain(_MOE, "dense_medium", "Dense medium", "dense_medium", "Dense Model 1.5B"),
    _pretrain(_MOE, "dense_large", "Dense large", "dense_large", "Dense Model 3B"),
    _pretrain(_MOE, "moe_medium", "MoE medium x8", "moe_medium", "MoE Model 1.5Bx8"),
    _pretrain(_MOE, "moe_small", "MoE small x8", "moe_small", "MoE Model 0.5Bx8"),
    _pretrain(_FAMILY, "transformer", "Transformer", "dense_medium", "Transformer"),
    _pretrain(_FAMILY, "mamba", "Mamba-2", "mamba", "Mamba"),
    _pretrain(_FAMILY, "pythia", "Pythia", "pythia", "Pythia"),
    _pretrain(_FAMILY, "rwkv", "RWKV-7", "rwkv", "RWKV"),
)

METHODS: tuple[Technique, ...] = (
    Technique("lora", "LoRA", "Hu et al. 2021, arXiv 2106.09685", "LoRA"),
    Technique("lora_plus", "LoRA+", "Hayou et al. 2024, arXiv 2402.12354", "LoRA-Plus"),
    Technique("rslora", "RSLoRA", "Kalajdzievski 2023, arXiv 2312.03732", "RSLoRA"),
    Technique("dora", "DoRA", "Liu et al. 2024, arXiv 2402.09353", "DoRA"),
    Technique("pissa", "PiSSA", "Meng et al. 2024, arXiv 2404.02948", "PiSSA"),
    Technique("freeze", "Freeze", "last layers trainable, as LLaMA-Factory's freeze tuning", "Freeze"),
    Technique("full", "Full", "all weights trainable", "Full*"),
    Technique("qlora", "QLoRA", "Dettmers et al. 2023, arXiv 2305.14314", None),
    Technique("oft", "OFT", "Qiu et al. 2023, arXiv 2306.07280", None),
)

PRECISIONS: tuple[Technique, ...] = (
    Technique("bfloat16", "bfloat16", "IEEE float32 truncated to an 8-bit significand", "bfloat16"),
    Technique("float16", "float16", "IEEE 754 binary16", "float16"),
    Technique("int8", "int8", "LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339, by bitsandbytes", None),
    Technique("int4", "int4", "NF4, Dettmers et al. 2023, arXiv 2305.14314, by bitsandbytes", "int4"),
    Technique("fp4", "FP4", "4-bit floating point, Dettmers et al. 2023, arXiv 2305.14314, by bitsandbytes", None),
)

SIZES: tuple[str, ...] = ("small", "medium", "large")

# The paper ranks tuning and quantization in buckets of these sizes; ours carry the same order.
PAPER_GROUPS: dict[str, str] = {
    "attention": "Attention Mechanism",
    "position": "Efficient Positional Encoding",
    "moe": "MoE Mechanism",
    "family": "Attention-free Mechanism",
    "tune-small": "1B-3B",
    "tune-medium": "7B-8B",
    "tune-large": "14B-24B",
    "quantize-small": "1.5B-3.8B",
    "quantize-medium": "7B-8B",
    "quantize-large": "14B-34B",
}


def cell_name(technique: str, size: str) -> str:
    """Name of a tuning or quantization cell, which is also DVC's matrix key: `lora-small`."""
    return f"{technique}-{size}"


def method_keys() -> list[str]:
    """Keys of all tuning methods, in the table's order."""
    return [method.key for method in METHODS]


def precision_keys() -> list[str]:
    """Keys of all precisions, in the table's order."""
    return [precision.key for precision in PRECISIONS]


def rows(
    architectures: Iterable[str], methods: Iterable[str], precisions: Iterable[str], sizes: Iterable[str]
) -> list[Row]:
    """Lists the rows of a run in the table's order.

    Args:
        architectures: Names of the pretraining runs of params.yaml.
        methods: Tuning methods of the run.
        precisions: Precisions of the run.
        sizes: Model sizes of the tuning and quantization matrices.

    Returns:
        One row per technique and group; techniques that the run leaves out are absent.
    """
    runs, chosen_sizes = set(architectures), set(sizes)
    ordered_sizes = [size for size in SIZES if size in chosen_sizes]
    listed = [row for row in ARCHITECTURE_ROWS if row.cell in runs]
    axes: tuple[tuple[Axis, tuple[Technique, ...], set[str]], ...] = (
        ("tune", METHODS, set(methods)),
        ("quantize", PRECISIONS, set(precisions)),
    )
    for axis, techniques, chosen in axes:
        for size in ordered_sizes:
            listed += [
                Row(
                    axis, f"{axis}-{size}", f"{size.capitalize()} model", technique.key, technique.label,
                    cell_name(technique.key, size), technique.paper_label,
                )
                for technique in techniques
                if technique.key in chosen
            ]  # fmt: skip
    return listed
