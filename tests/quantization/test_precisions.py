"""Each precision is stored, loaded alone, smaller, and close to the float32 model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllm import registry
from efficientllm.errors import ArtifactError, CellFailure, ParameterError
from efficientllm.measurement.subjects import bytes_in_memory, stored_bytes
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder
from efficientllm.quantization.precision import precision

OPTIONS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "float16": {},
    "int4": {"quantization_type": "nf4", "double_quantization": True, "compute_type": "bfloat16"},
}
INPUTS = torch.randint(64, (3, 12), generator=torch.Generator().manual_seed(1))


def decoder(hidden_size: int = 64) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocabulary_size=64, hidden_size=hidden_size, layers=2, heads=4, key_value_heads=2, intermediate_size=128,
        context_length=32, tie_embeddings=False, block="pre_norm", mixer="gqa", position="rope", feedforward="swiglu",
        mixer_options={}, position_options={}, feedforward_options={}, embedding_deviation=1.0,
    )  # fmt: skip
    return build_decoder(config).eval().requires_grad_(False)


def stored(key: str, folder: Path, **changes: Any) -> Decoder:
    implementation = precision(key)
    implementation.save(decoder(), folder, implementation.options({**OPTIONS[key], **changes}))
    return implementation.load(folder)


def test_every_registered_precision_is_tested() -> None:
    assert set(OPTIONS) == set(registry.precision_keys())


# relative error of the hidden states: rounding to 8 bits of significand, 11 bits, and 16 levels per block
@pytest.mark.parametrize(("key", "tolerance"), [("bfloat16", 0.02), ("float16", 0.003), ("int4", 0.15)])
def test_close_to_float32(key: str, tolerance: float, tmp_path: Path) -> None:
    loaded = stored(key, tmp_path)
    with torch.no_grad():
        expected = decoder().hidden_states(INPUTS)
        error = (loaded.hidden_states(INPUTS).float() - expected).norm() / expected.norm()
    assert 0 < float(error) < tolerance


def test_bytes_on_disk_and_in_memory(tmp_path: Path) -> None:
    reference = decoder()
    parameters = sum(parameter.numel() for parameter in reference.parameters())
    linear = sum(
        m.weight.numel() for n, m in reference.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    for key in ("bfloat16", "float16"):
        loaded = stored(key, tmp_path / key)
        assert stored_bytes(tmp_path / key) == bytes_in_memory(loaded) == 2 * parameters
    loaded = stored("int4", tmp_path / "int4")
    nominal = linear / 2 + 2 * (parameters - linear)
    # scales: a byte and a bit per block of 64
    assert nominal + linear / 64 < bytes_in_memory(loaded) < nominal + linear / 64 * 3 + 20_000
    assert stored_bytes(tmp_path / "int4") < 2 * parameters


def test_double_quantization_saves_bytes(tmp_path: Path) -> None:
    single = stored("int4", tmp_path / "single", double_quantization=False)
    double = stored("int4", tmp_path / "double", double_quantization=True)
    linear = sum(
        m.weight.numel() for n, m in decoder().named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    assert bytes_in_memory(single) > nominal_scales(linear)
    assert bytes_in_memory(double) != bytes_in_memory(single)


def nominal_scales(linear: int) -> float:
    return linear / 64 * 4


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
    with pytest.raises(CellFailure, match=r"multiples of 64, and layers.0.mixer.q_proj has 48"):
        implementation.save(decoder(hidden_size=48), tmp_path, implementation.options(OPTIONS["int4"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_type": "nf5"}, "parameter 'quantize.int4.quantization_type' is 'nf5'"),
        (
            {"double_quantisation": True},
            "unknown parameter 'quantize.int4.double_quantisation'; did you mean 'double_quantization'?",
        ),
    ],
)
def test_unfit_options_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        precision("int4").options({**OPTIONS["int4"], **change})
    assert message in str(caught.value)
