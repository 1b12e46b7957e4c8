"""Each precision is stored, loaded alone, smaller, and close to the float32 model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from efficientllm import registry
from efficientllm.config.load import read_yaml
from efficientllm.errors import ArtifactError, CellFailure, ParameterError
from efficientllm.measurement.parts import stored_parts
from efficientllm.measurement.subjects import stored_bytes
from efficientllm.models.accounting import bytes_in_memory
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder
from efficientllm.models.export import to_transformers
from efficientllm.quantization.precision import precision
from tests.models.conftest import FAMILIES, decoder_of

OPTIONS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "float16": {},
    "int8": {"outlier_threshold": 6.0, "compute_type": "float16"},
    "int4": {"quantization_type": "nf4", "double_quantization": True, "compute_type": "bfloat16"},
    "fp4": {"double_quantization": True, "compute_type": "bfloat16"},
}
EXTRA = {"int8", "fp4"}
INPUTS = torch.randint(64, (3, 12), generator=torch.Generator().manual_seed(1))


def decoder(hidden_size: int = 64) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocabulary_size=64, hidden_size=hidden_size, layers=2, heads=4, key_value_heads=2, intermediate_size=128,
        context_length=32, tie_embeddings=False, block="pre_norm", mixer="gqa", position="rope", feedforward="swiglu",
        mixer_options={}, position_options={}, feedforward_options={}, embedding_deviation=1.0,
    )  # fmt: skip
    made = build_decoder(config).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1 and name != "embed_tokens.weight":
            parameter.mul_(5)  # else the residual stream is the embedding, and no layer's error would show
    return made


def stored(key: str, folder: Path, **changes: Any) -> Decoder:
    implementation = precision(key)
    implementation.save(decoder(), folder, implementation.options({**OPTIONS[key], **changes}))
    return implementation.load(folder)


def linear_parameters(model: Decoder) -> int:
    return sum(
        layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    )


def test_every_registered_precision_is_tested() -> None:
    assert set(OPTIONS) == set(registry.precision_keys())


def test_extra_rows_are_known_to_every_profile_and_off_by_default() -> None:
    repository = Path(__file__).parents[2]
    assert not EXTRA & set(read_yaml(repository / "params.yaml")["precisions"])
    for path in (repository / "profiles").glob("*.yaml"):
        for key, options in read_yaml(path)["quantize"].items():
            assert precision(key).options(options) is not None
        assert set(OPTIONS) == set(read_yaml(path)["quantize"]), path


# relative error of the hidden states: rounding to 8 bits of significand, to 11, to 254 levels a row, to 16 levels a block
@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("bfloat16", 1e-3, 0.01), ("float16", 1e-4, 0.001), ("int8", 0.002, 0.02), ("int4", 0.03, 0.09),
        ("fp4", 0.04, 0.12),
    ],
)  # fmt: skip
def test_close_to_float32(key: str, least: float, most: float, tmp_path: Path) -> None:
    loaded = stored(key, tmp_path)
    with torch.no_grad():
        expected = decoder().hidden_states(INPUTS)
        found = loaded.hidden_states(INPUTS)
        error = (found.float() - expected).norm() / expected.norm()
    assert least < float(error) < most
    converted = decoder()
    precision(key).convert(converted, precision(key).options(OPTIONS[key]))
    with torch.no_grad():
        assert torch.equal(converted.hidden_states(INPUTS), found)
    assert bytes_in_memory(converted) == bytes_in_memory(loaded)


@pytest.mark.parametrize("key", ["bfloat16", "int4"])
def test_what_no_file_holds_is_not_rounded(key: str) -> None:
    model = to_transformers(decoder())
    frequencies = model.model.rotary_emb.inv_freq.clone()
    precision(key).convert(model, precision(key).options(OPTIONS[key]))
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)


def test_levels_of_a_normal_distribution_suit_weights_better_than_those_of_a_float() -> None:
    expected = decoder().hidden_states(INPUTS)
    errors = {}
    for key in ("int4", "fp4"):
        converted = decoder()
        precision(key).convert(converted, precision(key).options(OPTIONS[key]))
        errors[key] = float((converted.hidden_states(INPUTS).float() - expected).norm())
    assert errors["int4"] < errors["fp4"]


def test_bytes_on_disk_and_in_memory(tmp_path: Path) -> None:
    reference = decoder()
    parameters, linear = sum(parameter.numel() for parameter in reference.parameters()), linear_parameters(reference)
    rows = sum(layer.out_features for name, layer in reference.named_modules() if isinstance(layer, nn.Linear)) - 64
    for key in ("bfloat16", "float16"):
        loaded = stored(key, tmp_path / key)
        assert stored_bytes(tmp_path / key) == bytes_in_memory(loaded) == 2 * parameters
    loaded = stored("int8", tmp_path / "int8")
    # a scale of four bytes for each row
    assert bytes_in_memory(loaded) == linear + 4 * rows + 2 * (parameters - linear)
    layers = 14  # the file names each layer's layout in a byte
    assert stored_bytes(tmp_path / "int8") == bytes_in_memory(loaded) + layers
    for key in ("int4", "fp4"):
        loaded = stored(key, tmp_path / key)
        nominal = linear / 2 + 2 * (parameters - linear)
        # a scale for each block of 64: a byte with double quantization, at most four; tables of 16 and 256 levels a layer
        assert nominal + linear / 64 < bytes_in_memory(loaded) < nominal + linear / 64 * 4 + layers * 1200
        assert nominal + linear / 64 < stored_bytes(tmp_path / key) < nominal + linear / 64 * 1.2 + layers * 1400


def test_parts_add_up_and_name_their_types(tmp_path: Path) -> None:
    for key, linear_type, other_type in (
        ("bfloat16", "bfloat16", "bfloat16"), ("int8", "int8", "float16"), ("int4", "uint8", "bfloat16"),
    ):  # fmt: skip
        loaded = stored(key, tmp_path / key)
        parts = stored_parts(loaded)
        assert sum(part["bytes"] for part in parts.values()) == bytes_in_memory(loaded)
        assert parts["linear layers"]["types"] == [linear_type]
        assert parts["embedding"] == parts["output head"] == {"bytes": 2 * 64 * 64, "types": [other_type]}
        assert parts["norms and other weights"] == {"bytes": 2 * 5 * 64, "types": [other_type]}


def test_double_quantization_saves_bytes_in_the_file(tmp_path: Path) -> None:
    stored("int4", tmp_path / "single", double_quantization=False)
    stored("int4", tmp_path / "double", double_quantization=True)
    # four bytes of each scale against one, less a table of 256 levels and a few scales of scales for each layer
    saved = stored_bytes(tmp_path / "single") - stored_bytes(tmp_path / "double")
    assert abs(saved - (linear_parameters(decoder()) / 64 * 3 - 14 * 1024)) < 14 * 100


WIDE: dict[str, dict[str, Any]] = {
    "mla": {"mixer_options": {"kv_lora_rank": 64, "qk_rope_head_dim": 32}},
    "nsa": {"heads": 32, "key_value_heads": 8},
    "mamba2": {"mixer_options": {"head_dim": 8, "state_size": 16, "chunk": 4}},
    "rwkv": {
        "mixer_options": {
            **FAMILIES["rwkv"]["mixer_options"],
            **dict.fromkeys(("decay_rank", "learning_rate_rank", "value_rank", "gate_rank"), 64),
        },
    },
}
"""What gives each linear layer inputs in multiples of 64 and outputs in multiples of 32, as some CPUs' 4-bit kernel asks."""


# relative error of the logits by the rounding of the layers
@pytest.mark.parametrize("family", ["mqa", "mla", "nsa", "relative", "pythia", "mamba2", "rwkv"])
@pytest.mark.parametrize(("key", "least", "most"), [("int8", 0.004, 0.08), ("int4", 0.05, 0.42)])
def test_every_architecture_decodes_in_few_bits(key: str, least: float, most: float, family: str) -> None:
    model = decoder_of(**{**FAMILIES[family], "hidden_size": 128, "intermediate_size": 128, **WIDE.get(family, {})})
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = model(tokens).logits
    precision(key).convert(model, precision(key).options(OPTIONS[key]))
    packed = "Linear8bitLt" if key == "int8" else "Linear4bit"
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            kept = name.endswith(("lm_head", "kv_b_proj", "compression.inner", "compression.outer"))
            assert type(layer).__name__ == ("Linear" if kept else packed), name
    with torch.no_grad():
        whole = model(tokens).logits.float()
        cache = model.new_cache(2, 9)
        pieces = [model(tokens[:, first : first + 1], cache=cache).logits.float() for first in range(9)]
    assert least < float((whole - exact).norm() / exact.norm()) < most
    # other shapes round otherwise: up to 0.02 in int8, 0.011 in int4
    assert float((torch.cat(pieces, dim=1) - whole).norm() / whole.norm()) < 0.04


@pytest.mark.parametrize("key", ["int8", "int4", "fp4"])
def test_lack_of_a_kernel_is_a_failed_cell(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.nn

    def missing(*arguments: Any) -> None:
        raise NotImplementedError("no kernel for this CPU")

    layer = bitsandbytes.nn.Linear8bitLt if key == "int8" else bitsandbytes.nn.Linear4bit
    monkeypatch.setattr(layer, "forward", missing)
    implementation = precision(key)
    with pytest.raises(CellFailure, match=f"cannot multiply {key} weights on this CPU: no kernel for this CPU"):
        implementation.save(decoder(), tmp_path, implementation.options(OPTIONS[key]))
    assert not list(tmp_path.iterdir())


def test_lack_of_a_type_is_a_failed_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored("bfloat16", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(CellFailure, match="Tesla T4 does not compute in bfloat16"):
        precision("bfloat16").load(tmp_path, device="cuda")

    def missing(*arguments: Any) -> None:
        raise RuntimeError("'addmm_impl_cpu_' not implemented for 'BFloat16'")

    monkeypatch.setattr(nn.functional, "linear", missing)
    with pytest.raises(
        CellFailure, match="does not compute in bfloat16 on this CPU: 'addmm_impl_cpu_' not implemented"
    ):
        precision("bfloat16").load(tmp_path)


@pytest.mark.parametrize("key", OPTIONS)
def test_damaged_artifact_is_one_clear_error(key: str, tmp_path: Path) -> None:
    stored(key, tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ArtifactError, match="dvc repro"):
        precision(key).load(tmp_path)


def test_width_that_the_kernel_cannot_multiply_is_a_failed_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes.functional

    monkeypatch.setattr(bitsandbytes.functional, "has_avx512bf16", lambda: True)
    implementation = precision("int4")
    with pytest.raises(CellFailure, match=r"inputs that are multiples of 64, and layers.0.mixer.q_proj has 48"):
        implementation.save(decoder(hidden_size=48), tmp_path, implementation.options(OPTIONS["int4"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_type": "nf5"}, "parameter 'quantize.int4.quantization_type' is 'nf5'"),
        (
            {"double_quantisation": True},
            "unknown parameter 'quantize.int4.double_quantisation'; did you mean 'quantize.int4.double_quantization'?",
        ),
    ],
)
def test_unfit_options_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        precision("int4").options({**OPTIONS["int4"], **change})
    assert message in str(caught.value)
