"""The loss of instruction examples: next tokens of the answer and of nothing else, whatever pads the batch."""

import numpy as np
import pytest
import torch

from efficientllm.data.packing import IGNORED
from efficientllm.data.prompts import EncodedExample
from efficientllm.models.build import build_decoder
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder
from efficientllm.training.losses import TrainingLoss
from efficientllm.tuning.tune import answer_loss, collated

LONG = EncodedExample([5, 6, 7, 8, 9, 0], prompt_length=3)
SHORT = EncodedExample([10, 11, 0], prompt_length=2)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocabulary_size=16, hidden_size=32, layers=2, heads=4, key_value_heads=2, intermediate_size=32,
        context_length=16, tie_embeddings=False, block="pre_norm", mixer="gqa", position="rope", feedforward="swiglu",
        mixer_options={}, position_options={}, feedforward_options={}, embedding_deviation=1.0,
    )  # fmt: skip
    return build_decoder(config)


def by_hand(decoder: Decoder, example: EncodedExample) -> list[float]:
    """Loss of each answer token, given all before it, one prediction at a time."""
    losses = []
    for place in range(example.prompt_length, len(example.token_ids)):
        with torch.no_grad():
            logits = decoder(torch.tensor([example.token_ids[:place]])).logits[0, -1]
        losses.append(-float(logits.double().log_softmax(dim=0)[example.token_ids[place]]))
    return losses


def test_inputs_and_labels_by_hand() -> None:
    inputs, labels = collated([LONG, SHORT])
    assert inputs.tolist() == [[5, 6, 7, 8, 9], [10, 11, 0, 0, 0]]
    assert labels.tolist() == [[IGNORED, IGNORED, 8, 9, 0], [IGNORED, 0, IGNORED, IGNORED, IGNORED]]


def test_the_loss_is_the_mean_over_the_answers_tokens(decoder: Decoder) -> None:
    expected = np.mean(by_hand(decoder, LONG) + by_hand(decoder, SHORT))  # 3 tokens and 1: a token counts, not a row
    with torch.no_grad():
        assert answer_loss(decoder, [LONG, SHORT], torch.device("cpu")) == pytest.approx(expected, rel=1e-5)
    decoder.train()
    trained, _ = TrainingLoss(decoder, decoder, lambda: 0.0)(*collated([LONG, SHORT]), 1.0)
    decoder.eval()
    assert float(trained.detach()) == pytest.approx(expected, rel=1e-5)


def test_padding_and_prompts_bear_no_gradient(decoder: Decoder) -> None:
    """The head's rows get what the answers' positions alone give; a batch's padding changes nothing."""

    def gradient(batch: list[EncodedExample]) -> torch.Tensor:
        decoder.zero_grad()
        decoder.train()
        loss, _ = TrainingLoss(decoder, decoder, lambda: 0.0)(*collated(batch), 1.0)
        loss.backward()
        decoder.eval()
        found = decoder.blocks()[0].mixer.q_proj.weight.grad
        assert found is not None
        return found.clone()

    apart = (3 * gradient([LONG]) + gradient([SHORT])) / 4
    torch.testing.assert_close(gradient([LONG, SHORT]), apart, atol=1e-7, rtol=1e-4)
