"""Every row of the ranking: which technique it is, in which group it competes, and which cell is measured for it.

A *cell* is one trained or quantized model, one DVC stage instance. Several rows may share a cell: the medium dense
model is at once the GQA row, the RoPE row and the Transformer row. Adding a technique adds one `Row` here (or one
`Method` or `Precision`) and one file under `components/`, `tuning/methods/` or `quantization/precisions/`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Axis = Literal["pretrain", "tune", "quantize"]
AXES: tuple[Axis, ...] = get_args(Axis)
TrainedAxis = Literal["pretrain", "tune"]
"""The axes whose cells are trained, and so can be trained again from another seed, as replicas."""

TRAINED_AXES: tuple[TrainedAxis, ...] = get_args(TrainedAxis)
AXIS_LABELS: dict[Axis, str] = {
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
        meaning: What it is, in a line, for readers who do not know the name.
        reference: The publication or library that defines it.
    """

    axis: Axis
    group: str
    group_label: str
    technique: str
    label: str
    cell: str
    paper_label: str | None
    meaning: str
    reference: str

    @property
    def compared_in(self) -> str:
        """The group's name, or the axis' where each size has a group of its own."""
        return self.group_label if self.axis == "pretrain" else AXIS_LABELS[self.axis]


@dataclass(frozen=True)
class Technique:
    """A tuning method or a precision: a row in each size's group.

    Args:
        key: Name in parameters, files and stage names.
        label: Name on the page.
        paper_label: Its name in the paper's ranking table, where it has one.
        meaning: What it is, in a line, for readers who do not know the name.
        reference: The publication or library that defines it.
    """

    key: str
    label: str
    paper_label: str | None
    meaning: str
    reference: str


_ATTENTION = ("attention", "Attention Mechanism")
_POSITION = ("position", "Efficient Positional Encoding")
_MOE = ("moe", "MoE Mechanism")
_FAMILY = ("family", "Attention-free Mechanism")


def _pretrain(
    group: tuple[str, str], technique: str, label: str, cell: str, paper_label: str | None, meaning: str, reference: str
) -> Row:
    return Row("pretrain", group[0], group[1], technique, label, cell, paper_label, meaning, reference)


# fmt: off
ARCHITECTURE_ROWS: tuple[Row, ...] = (
    _pretrain(
        _ATTENTION, "mqa", "MQA", "mqa", "MQA",
        "multi-query attention: all query heads share one head of keys and values", "Shazeer 2019, arXiv 1911.02150",
    ),
    _pretrain(
        _ATTENTION, "gqa", "GQA", "dense_medium", "GQA",
        "grouped-query attention: each group of query heads shares a head of keys and values",
        "Ainslie et al. 2023, arXiv 2305.13245",
    ),
    _pretrain(
        _ATTENTION, "mla", "MLA", "mla", "MLA",
        "multi-head latent attention: keys and values of all heads are computed from one small vector per token, and only that is cached",
        "Liu et al. 2024, arXiv 2405.04434",
    ),
    _pretrain(
        _ATTENTION, "nsa", "NSA", "nsa", "NSA",
        "native sparse attention: compressed blocks, the few blocks that score best, and a sliding window",
        "Yuan et al. 2025, arXiv 2502.11089",
    ),
    _pretrain(
        _ATTENTION, "mha", "MHA", "mha", None,
        "multi-head attention: each query head has keys and values of its own", "Vaswani et al. 2017, arXiv 1706.03762",
    ),
    _pretrain(
        _POSITION, "rope", "RoPE", "dense_medium", "RoPE",
        "rotary: queries and keys are rotated by angles that grow with the position", "Su et al. 2021, arXiv 2104.09864",
    ),
    _pretrain(
        _POSITION, "sinusoidal", "Absolute", "sinusoidal", "Absolute",
        "sinusoids of the position are added to the token's embedding", "Vaswani et al. 2017, arXiv 1706.03762",
    ),
    _pretrain(
        _POSITION, "learned", "Learnable Absolute", "learned", "Learnable Absolute",
        "a trained vector for each position is added to the token's embedding", "Gehring et al. 2017, arXiv 1705.03122",
    ),
    _pretrain(
        _POSITION, "relative", "Relative", "relative", "Relate",
        "a trained number for each head and span of distances is added to the attention scores",
        "Raffel et al. 2019, arXiv 1910.10683",
    ),
    _pretrain(
        _POSITION, "none", "None", "no_position", None,
        "no encoding: only the causal mask conveys the order", "Kazemnejad et al. 2023, arXiv 2305.19466",
    ),
    _pretrain(
        _MOE, "dense_small", "Dense small", "dense_small", None,
        "one feed-forward layer in each block, the small size", "Shazeer 2020, arXiv 2002.05202",
    ),
    _pretrain(
        _MOE, "dense_medium", "Dense medium", "dense_medium", "Dense Model 1.5B",
        "one feed-forward layer in each block, the medium size", "Shazeer 2020, arXiv 2002.05202",
    ),
    _pretrain(
        _MOE, "dense_large", "Dense large", "dense_large", "Dense Model 3B",
        "one feed-forward layer in each block, the large size", "Shazeer 2020, arXiv 2002.05202",
    ),
    _pretrain(
        _MOE, "moe_medium", "MoE medium x8", "moe_medium", "MoE Model 1.5Bx8",
        "mixture of experts: eight feed-forward layers in each block, of which a router chooses some for each token",
        "Jiang et al. 2024, arXiv 2401.04088",
    ),
    _pretrain(
        _MOE, "moe_small", "MoE small x8", "moe_small", "MoE Model 0.5Bx8",
        "mixture of experts: eight feed-forward layers in each block, of which a router chooses some for each token",
        "Jiang et al. 2024, arXiv 2401.04088",
    ),
    _pretrain(
        _FAMILY, "transformer", "Transformer", "dense_medium", "Transformer",
        "grouped-query attention, rotary positions and gated feed-forward layers, as Llama 3",
        "Grattafiori et al. 2024, arXiv 2407.21783",
    ),
    _pretrain(
        _FAMILY, "mamba", "Mamba-2", "mamba", "Mamba",
        "state-space layers instead of attention", "Dao and Gu 2024, arXiv 2405.21060",
    ),
    _pretrain(
        _FAMILY, "pythia", "Pythia", "pythia", "Pythia",
        "attention and feed-forward layer side by side, as GPT-NeoX", "Biderman et al. 2023, arXiv 2304.01373",
    ),
    _pretrain(
        _FAMILY, "rwkv", "RWKV-7", "rwkv", "RWKV",
        "recurrent layers whose state is updated by a generalized delta rule", "Peng et al. 2025, arXiv 2503.14456",
    ),
)

METHODS: tuple[Technique, ...] = (
    Technique(
        "lora", "LoRA", "LoRA",
        "low-rank adaptation: the weights are frozen, and a product of two thin matrices is trained beside each",
        "Hu et al. 2021, arXiv 2106.09685",
    ),
    Technique(
        "lora_plus", "LoRA+", "LoRA-Plus",
        "LoRA whose second matrix learns faster than the first",
        "Hayou et al. 2024, arXiv 2402.12354",
    ),
    Technique(
        "rslora", "RSLoRA", "RSLoRA",
        "LoRA scaled by alpha over the square root of the rank instead of over the rank",
        "Kalajdzievski 2023, arXiv 2312.03732",
    ),
    Technique(
        "dora", "DoRA", "DoRA",
        "weight-decomposed LoRA: LoRA trains the direction of each row, and its magnitude is trained separately",
        "Liu et al. 2024, arXiv 2402.09353",
    ),
    Technique(
        "pissa", "PiSSA", "PiSSA",
        "LoRA that starts from the largest singular parts of the weights",
        "Meng et al. 2024, arXiv 2404.02948",
    ),
    Technique(
        "freeze", "Freeze", "Freeze",
        "the last layers are trained, all others are frozen",
        "LLaMA-Factory's freeze tuning",
    ),
    Technique("full", "Full", "Full*", "all weights are trained", ""),
    Technique(
        "qlora", "QLoRA", None,
        "LoRA on weights that are held in 4 bits",
        "Dettmers et al. 2023, arXiv 2305.14314",
    ),
    Technique(
        "oft", "OFT", None,
        "orthogonal fine-tuning: the weights are rotated",
        "Qiu et al. 2023, arXiv 2306.07280",
    ),
)

PRECISIONS: tuple[Technique, ...] = (
    Technique("bfloat16", "bfloat16", "bfloat16", "16 bits with float32's range and an 8-bit significand", ""),
    Technique("float16", "float16", "float16", "16 bits with a smaller range and an 11-bit significand", "IEEE 754"),
    Technique(
        "int8", "int8", None,
        "8-bit integers; columns of outliers stay in 16 bits",
        "LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339, by bitsandbytes",
    ),
    Technique(
        "int4", "int4", "int4",
        "4-bit levels that suit normally distributed weights (NF4), with a scale for each block",
        "Dettmers et al. 2023, arXiv 2305.14314, by bitsandbytes",
    ),
    Technique(
        "fp4", "FP4", None,
        "4-bit floating-point numbers with a scale for each block",
        "Dettmers et al. 2023, arXiv 2305.14314, by bitsandbytes",
    ),
)
# fmt: on

SIZES: tuple[str, ...] = ("small", "medium", "large")


def cell_name(technique: str, size: str) -> str:
    """Name of a tuning or quantization cell, which is also DVC's matrix key: `lora-small`."""
    return f"{technique}-{size}"


def technique_and_size(cell: str) -> tuple[str, str]:
    """Splits what `cell_name` composed: `lora` and `small`."""
    technique, _, size = cell.rpartition("-")
    return technique, size


def method_keys() -> list[str]:
    """Keys of all tuning methods, in the table's order."""
    return [method.key for method in METHODS]


def precision_keys() -> list[str]:
    """Keys of all precisions, in the table's order."""
    return [precision.key for precision in PRECISIONS]


def techniques(listed: Iterable[Row]) -> list[Row]:
    """Keeps one row of each technique, however many sizes have it."""
    return list({(row.compared_in, row.technique): row for row in listed}.values())


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
                    cell_name(technique.key, size), technique.paper_label, technique.meaning, technique.reference,
                )
                for technique in techniques
                if technique.key in chosen
            ]  # fmt: skip
    return listed
