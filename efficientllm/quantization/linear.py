"""Precisions of linear layers by bitsandbytes, and what a model's parts are stored in."""

import contextlib
import logging
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from efficientllm.config.schema import Section
from efficientllm.errors import ArtifactError, CellFailure, first_line
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import CONFIG_FILE, cast_weights, save_decoder
from efficientllm.quantization.precision import Precision, require_type

KEPT_LAYERS = (
    "lm_head", "kv_b_proj",
    *(f"{part}_compression.{layer}" for part in ("key", "value") for layer in ("inner", "outer")),
)  # fmt: skip
"""Ends of the names of linear layers that stay in the compute type.

The output head decides every token, and where it is tied it is the embedding, which is looked up rather than multiplied.
MLA multiplies its up-projection `kv_b_proj` into queries and outputs instead of applying it, which packed weights cannot.
NSA's compression multiplies each head's blocks, an input of four dimensions, which LLM.int8() cannot.
"""

_CPU_INPUTS, _CPU_OUTPUTS = 64, 32
_PROBE_WIDTH = 64


class LinearPrecision(Precision):
    """Linear layers in few bits by bitsandbytes; embeddings, the output head and norms in the compute type."""

    @abstractmethod
    def configuration(self, options: Any) -> Any:
        """Returns the `BitsAndBytesConfig` of the parameters."""

    @abstractmethod
    def layer(self, linear: nn.Linear, options: Any) -> nn.Module:
        """Returns the quantized layer of a linear one, on its device."""

    def finish(self, layer: nn.Module) -> None:
        """Brings a layer into the form in which it multiplies, where bitsandbytes would do so at first use."""

    def check_shapes(self, module: nn.Module, device: torch.device) -> None:
        """Refuses shapes that a device's kernel cannot multiply.

        Raises:
            CellFailure: A layer has such a shape.
        """

    def save(self, decoder: Decoder, folder: Path, options: Any) -> None:
        """Quantizes the linear layers and writes packed weights and scales as safetensors."""
        from efficientllm.models.transformers_adapter import EfficientLLMForCausalLM

        self._require(decoder, options, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        with tempfile.TemporaryDirectory() as original:
            save_decoder(Path(original), decoder)
            model = EfficientLLMForCausalLM.from_pretrained(
                original,
                quantization_config=self.configuration(options),
                dtype=getattr(torch, options.compute_type),
            )
        model.save_pretrained(folder)

    def load(self, folder: Path, *, device: Any = "cpu") -> Decoder:
        """Loads packed weights."""
        from efficientllm.models.transformers_adapter import EfficientLLMForCausalLM

        _silence()
        require_type(_stored_type(folder), torch.device(device))
        try:
            model = EfficientLLMForCausalLM.from_pretrained(folder, device_map={"": str(device)})
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder} cannot be loaded ({error}): run `dvc repro` again") from error
        decoder: Decoder = model.decoder
        decoder.requires_grad_(False).eval()
        self._finish(decoder)
        return decoder

    @torch.no_grad()
    def convert(self, module: nn.Module, options: Any) -> None:
        """Casts the model to the compute type and replaces its linear layers one by one."""
        self._require(module, options, next(module.parameters()).device)
        cast_weights(module.requires_grad_(False).eval(), getattr(torch, options.compute_type))
        for name, linear in list(_layers(module)):
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, self.layer(linear, options).eval())
        self._finish(module)

    def _require(self, module: nn.Module, options: Any, device: torch.device) -> None:
        """Checks the shapes and the compute type, and multiplies once by a small layer of the precision."""
        _silence()
        dtype = getattr(torch, options.compute_type)
        require_type(dtype, device)
        self.check_shapes(module, device)
        probe = nn.Linear(_PROBE_WIDTH, _PROBE_WIDTH, bias=False, device=device, dtype=dtype)
        with torch.no_grad(), _cell_failures(self.key, device):
            self.layer(probe, options).eval()(torch.ones(1, _PROBE_WIDTH, device=device, dtype=dtype))

    @torch.no_grad()
    def _finish(self, module: nn.Module) -> None:
        for _, layer in _layers(module):
            with _cell_failures(self.key, layer.weight.device):
                self.finish(layer)


class FourBitOptions(Section):
    """Parameters of 4-bit weights.

    `double_quantization` stores the blocks' scales in 8 bits; `compute_type` is that of activations and of all that is
    not quantized.
    """

    double_quantization: bool
    compute_type: Literal["bfloat16", "float16", "float32"]


class FourBitPrecision(LinearPrecision):
    """4-bit weights in blocks of 64 with a scale each, dequantized inside the matrix product.

    Args:
        key: The precision's name.
        options: Class of its parameters.
        quantization_type: `nf4` or `fp4`; None takes it from the parameters.
    """

    def __init__(self, key: str, options: type[FourBitOptions], quantization_type: str | None) -> None:
        super().__init__(key, options, nominal_bits=4)
        self._quantization_type = quantization_type

    def configuration(self, options: Any) -> Any:
        """Describes the quantization to Transformers."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self._quantization_type or options.quantization_type,
            bnb_4bit_use_double_quant=options.double_quantization,
            bnb_4bit_compute_dtype=getattr(torch, options.compute_type),
            llm_int8_skip_modules=list(KEPT_LAYERS),
        )

    def layer(self, linear: nn.Linear, options: Any) -> nn.Module:
        """Packs a layer's weights two to a byte."""
        from bitsandbytes.nn import Linear4bit, Params4bit

        with torch.device("meta"):
            made = Linear4bit(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                compute_dtype=getattr(torch, options.compute_type),
                compress_statistics=options.double_quantization,
                quant_type=self._quantization_type or options.quantization_type,
            )
        made.weight = Params4bit(
            linear.weight.detach(),
            requires_grad=False,
            compress_statistics=options.double_quantization,
            quant_type=self._quantization_type or options.quantization_type,
            module=made,
        ).to(linear.weight.device)
        made.bias = linear.bias
        return made

    def check_shapes(self, module: nn.Module, device: torch.device) -> None:
        """On a CPU with bfloat16 instructions, rows and columns have to be multiples of its kernel's blocks."""
        from bitsandbytes.functional import has_avx512bf16

        if device.type == "cuda" or not has_avx512bf16():
            return
        for name, layer in _layers(module):
            for what, width, block in (
                ("inputs", layer.in_features, _CPU_INPUTS),
                ("outputs", layer.out_features, _CPU_OUTPUTS),
            ):
                if width % block:
                    raise CellFailure(
                        f"bitsandbytes' 4-bit CPU kernel needs {what} that are multiples of {block}, and {name} has {width}: "
                        "change hidden_size, intermediate_size or the heads of models.<size>"
                    )

    def finish(self, layer: Any) -> None:
        """On a CPU with bfloat16 instructions, the first product rearranges the weights for them."""
        inputs = torch.ones(1, layer.in_features, device=layer.weight.device, dtype=layer.compute_dtype)
        layer(inputs)


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Lists the layers that are, or are to be, quantized, with their names."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and not name.endswith(KEPT_LAYERS):
            yield name, layer


@contextlib.contextmanager
def _cell_failures(key: str, device: torch.device) -> Iterator[None]:
    """Turns what bitsandbytes raises where it has no kernel into a `CellFailure`; lack of memory stays what it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AttributeError, OSError) as error:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
        raise CellFailure(f"bitsandbytes cannot multiply {key} weights on {name}: {first_line(error)}") from error


def _stored_type(folder: Path) -> torch.dtype:
    """The type of what is not quantized."""
    from efficientllm.files import read_json

    description = read_json(folder / CONFIG_FILE)
    name = description.get("dtype") if isinstance(description, dict) else None
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise ArtifactError(f"{folder / CONFIG_FILE} names no dtype: run `dvc repro` again")
    return found


def _silence() -> None:
    """Keeps bitsandbytes from logging a line for every cast of every layer."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
