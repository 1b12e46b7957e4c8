"""The adapter under `generate`, PEFT, bitsandbytes and Transformers' own saving and loading."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from efficientllm.errors import ArtifactError
from efficientllm.models.decoder import Decoder
from efficientllm.models.export import to_transformers
from efficientllm.models.transformers_adapter import EfficientLLMConfig, EfficientLLMForCausalLM
from efficientllm.models.weights import load_decoder, save_decoder


def adapt(decoder: Decoder) -> EfficientLLMForCausalLM:
    model = EfficientLLMForCausalLM(EfficientLLMConfig(**decoder.config.to_dict())).eval()
    model.decoder.load_state_dict(decoder.state_dict())
    return model


@torch.no_grad()
def greedy(decoder: Decoder, prompt: torch.Tensor, steps: int) -> torch.Tensor:
    """Takes the likeliest token of a full forward pass, again and again."""
    for _ in range(steps):
        prompt = torch.cat([prompt, decoder(prompt).logits[:, -1:].argmax(dim=-1)], dim=1)
    return prompt


@pytest.mark.parametrize(
    ("position", "feedforward"), [("rope", "swiglu"), ("learned", "moe"), ("sinusoidal", "swiglu")]
)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation(make_decoder, tokens, position, feedforward, use_cache):
    decoder = make_decoder(position=position, feedforward=feedforward)
    found = adapt(decoder).generate(tokens, max_new_tokens=8, do_sample=False, use_cache=use_cache)
    assert torch.equal(found, greedy(decoder, tokens, 8))


def test_left_padded_generation(make_decoder, tokens):
    decoder = make_decoder()
    padded, mask = torch.zeros(2, 17, dtype=torch.long), torch.zeros(2, 17, dtype=torch.long)
    padded[0], mask[0] = tokens[0], 1
    padded[1, 6:], mask[1, 6:] = tokens[1, :11], 1
    found = adapt(decoder).generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(found[0], greedy(decoder, tokens[:1], 6)[0])
    assert torch.equal(found[1, 6:], greedy(decoder, tokens[1:2, :11], 6)[0])


def test_beams_and_samples_equal_llamas(make_decoder, tokens):
    decoder = make_decoder()
    model, llama = adapt(decoder), to_transformers(decoder)
    beams = {"max_new_tokens": 7, "num_beams": 3, "do_sample": False}
    assert torch.equal(model.generate(tokens, **beams), llama.generate(tokens, **beams))
    samples = {"max_new_tokens": 7, "do_sample": True, "top_k": 20, "temperature": 1.5, "num_return_sequences": 2}
    drawn = []
    for candidate in (model, llama):
        torch.manual_seed(0)
        drawn.append(candidate.generate(tokens, **samples))
    assert torch.equal(*drawn)
    assert drawn[0].shape == (6, 24)


@pytest.mark.parametrize("feedforward", ["swiglu", "moe"])
def test_loss(make_decoder, tokens, feedforward):
    decoder = make_decoder(feedforward=feedforward)
    labels = tokens.clone()
    labels[:, :5] = -100
    loss = adapt(decoder).train()(tokens, labels=labels).loss
    output = decoder.train()(tokens)
    expected = F.cross_entropy(output.logits[:, 4:-1].flatten(0, 1), tokens[:, 5:].flatten())
    if feedforward == "moe":
        expected = expected + output.auxiliary_loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_both_ways_of_storing_are_one(make_decoder, tokens, tmp_path, tie_embeddings):
    decoder = make_decoder(feedforward="moe", tie_embeddings=tie_embeddings)
    expected = decoder(tokens).logits
    save_decoder(tmp_path / "plain", decoder)
    assert AutoConfig.from_pretrained(tmp_path / "plain").decoder_config() == decoder.config
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert isinstance(model, EfficientLLMForCausalLM)
    assert torch.equal(model(tokens).logits, expected)
    model.save_pretrained(tmp_path / "transformers")
    loaded = load_decoder(tmp_path / "transformers").eval()
    assert loaded.config == decoder.config
    assert torch.equal(loaded(tokens).logits, expected)
    again = EfficientLLMForCausalLM.from_pretrained(tmp_path / "transformers").eval()
    assert torch.equal(again(tokens).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(make_decoder, tokens, tmp_path, dtype):
    save_decoder(tmp_path, make_decoder())
    model = EfficientLLMForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.equal(model(tokens).logits, load_decoder(tmp_path, dtype=dtype).eval()(tokens).logits)


def test_fresh_weights_are_the_decoders(make_config):
    config = make_config(layers=8, hidden_size=64)
    torch.manual_seed(3)
    expected = Decoder(config)
    torch.manual_seed(3)
    model = EfficientLLMForCausalLM(EfficientLLMConfig(**config.to_dict()))
    assert all(torch.equal(a, b) for a, b in zip(model.decoder.parameters(), expected.parameters(), strict=True))


def test_damaged_models_are_refused(make_decoder, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(ArtifactError, match="is missing"):
        EfficientLLMForCausalLM.from_pretrained(tmp_path / "nowhere")
    save_decoder(tmp_path, make_decoder())
    weights = tmp_path / "model.safetensors"
    stored = load_file(weights)
    stored.pop("decoder.layers.1.mixer.q_proj.weight")
    save_file(stored, weights, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"missing weight decoder\.layers\.1\.mixer\.q_proj\.weight"):
        EfficientLLMForCausalLM.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ArtifactError, match="damaged"):
        EfficientLLMForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_adapters(make_decoder, tokens, tmp_path, dora, tie_embeddings):
    decoder = make_decoder(tie_embeddings=tie_embeddings)
    expected = decoder(tokens).logits
    settings = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=dora)
    model = get_peft_model(adapt(decoder), settings)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=0, atol=1e-4)
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(4):
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    frozen = [p for name, p in model.named_parameters() if "lora_" not in name]
    assert all(p.grad is None for p in frozen)
    tuned = model(tokens).logits
    model.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(adapt(decoder), tmp_path).merge_and_unload()
    torch.testing.assert_close(merged.decoder(tokens).logits, tuned, rtol=0, atol=1e-3)


def test_checkpointed_adapters(make_decoder, tokens):
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = adapt(make_decoder())
        if enabled:
            model.gradient_checkpointing_enable()
            assert model.decoder.gradient_checkpointing
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).train()
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_four_bit_round_trip(make_decoder, tokens, tmp_path, tie_embeddings):
    decoder = make_decoder(hidden_size=64, intermediate_size=128, tie_embeddings=tie_embeddings)
    save_decoder(tmp_path / "full", decoder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = EfficientLLMForCausalLM.from_pretrained(
        tmp_path / "full", quantization_config=quantization, dtype=torch.float32
    ).eval()
    linear = {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {kind for name, kind in linear.items() if "lm_head" not in name} == {"Linear4bit"}
    assert tie_embeddings or linear["decoder.lm_head"] == "Linear"
    logits = model(tokens).logits
    correlation = torch.corrcoef(torch.stack([logits.flatten(), decoder(tokens).logits.flatten()]))[0, 1]
    assert 0.9 < float(correlation) < 0.99999
    model.save_pretrained(tmp_path / "quantized")
    small, large = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("quantized", "full"))
    assert small < large / 2
    again = EfficientLLMForCausalLM.from_pretrained(tmp_path / "quantized", device_map={"": "cpu"}).eval()
    assert torch.equal(again(tokens).logits, logits)
    generated = again.generate(tokens, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, greedy(again.decoder, tokens, 3))
    with pytest.raises(ArtifactError, match="quantized model"):
        load_decoder(tmp_path / "quantized")
