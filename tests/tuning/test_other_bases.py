"""Bases of other architectures than the dense Transformer: what their tuning leaves out, refuses and computes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllm.data.prompts import EncodedExample
from efficientllm.errors import CellFailure
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import save_decoder
from efficientllm.training.losses import training_loss
from efficientllm.tuning.method import tuning_method
from efficientllm.tuning.tune import collated
from tests.models.conftest import FAMILIES, decoder_of
from tests.tuning.test_methods import OPTIONS, settings

EXAMPLES = [EncodedExample([5, 6, 7, 8, 9, 1], prompt_length=3), EncodedExample([10, 11, 12, 1], prompt_length=2)]


@pytest.mark.parametrize("kind", [{"feedforward": "moe"}, {}], ids=["mixture", "dense"])
def test_padding_moves_no_gradient(kind: dict[str, Any]) -> None:
    """A mixture's balancing counts the tokens of the examples alone, however wide they are padded."""
    decoder = decoder_of(**kind).train()

    def gradients(width: int) -> dict[str, torch.Tensor]:
        decoder.zero_grad()
        loss, _ = training_loss(decoder, *collated(EXAMPLES, [width]))
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}  # type: ignore[union-attr]

    narrow, wide = gradients(8), gradients(40)
    for name, gradient in narrow.items():
        torch.testing.assert_close(wide[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def prepared(folder: Path, method: str, kind: dict[str, Any], **options: Any) -> Decoder:
    save_decoder(folder, decoder_of(**kind))
    implementation = tuning_method(method)
    chosen = implementation.options(settings(method, **options))
    decoder = implementation.prepare(folder, chosen).decoder
    assert isinstance(decoder, Decoder)
    return decoder


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_adapted_latents_decode_behind_a_cache(tmp_path: Path, method: str) -> None:
    """Absorbed into queries and outputs is what the adapted layer computes, not its frozen weight."""
    latent = {"kv_lora_rank": 64, "qk_rope_head_dim": 32}  # widths that 4-bit products on a CPU can take
    kind = {"mixer": "mla", "mixer_options": latent, "hidden_size": 128, "intermediate_size": 128}
    decoder = prepared(tmp_path, method, kind).eval()
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
        whole = decoder(tokens).logits
        cache = decoder.new_cache(2, 9)
        steps = [decoder(tokens[:, :4], cache=cache).logits]
        steps += [decoder(tokens[:, place : place + 1], cache=cache).logits for place in range(4, 9)]
    error = 0.1 if method == "qlora" else 1e-3  # 4-bit products of one token and of several round differently
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=error * float(whole.std()))


def test_a_start_needs_as_many_singular_values_as_its_rank(tmp_path: Path) -> None:
    """Some layers of this base are narrower than others: storing would fail after all of the training."""
    with pytest.raises(
        CellFailure, match=r"pissa.rank is 12, and mixer.key_compression.inner .* 8 .*: set it to 8 or less"
    ):
        prepared(tmp_path, "pissa", FAMILIES["nsa"], rank=12)
    prepared(tmp_path, "pissa", FAMILIES["nsa"], rank=8)


def test_rotations_divide_the_inputs(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match=r"oft.block_size is 24, which does not divide the 32 inputs of mixer.q_proj"):
        prepared(tmp_path, "oft", {}, block_size=24)
    assert OPTIONS["oft"]["block_size"] == 8
    prepared(tmp_path, "oft", {})
