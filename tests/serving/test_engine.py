"""The serving engine's tokens are those of Transformers' greedy `generate`, for every mixer."""

import functools
import re
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from torch._inductor.utils import run_and_get_code

from efficientllm.models import attention, spans
from efficientllm.models import decoder as decoder_module
from efficientllm.models.build import build_decoder
from efficientllm.models.cuda_graphs import RecordingError
from efficientllm.models.decoder import Decoder
from efficientllm.quantization.precision import precision
from efficientllm.serving.engine import GreedyEngine, _most_likely_by_parts
from efficientllm.serving.matrix_vector_pass import MatrixVectorProducts
from efficientllm.serving.packed_product_pass import PackedProducts
from tests.models.conftest import FAMILIES

RECORDED = "CUDA graphs, one per position; decoding compiled block by block"
MOE = {"experts": 4, "experts_per_token": 2, "load_balancing_weight": 0.01}
CHANGES: dict[str, dict[str, Any]] = {
    **FAMILIES,
    "nsa-wide": {
        "mixer": "nsa",
        "mixer_options": {
            "compression_block": 16,
            "compression_stride": 8,
            "selection_block": 16,
            "selected_blocks": 3,
            "sliding_window": 12,
        },
    },
    "sinusoidal": {"position": "sinusoidal"},
    "learned-moe": {"position": "learned", "feedforward": "moe", "feedforward_options": MOE},
}


def made(make_config: Any, changes: dict[str, Any]) -> Decoder:
    torch.manual_seed(0)
    decoder = build_decoder(make_config(**changes)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return decoder


def prompts_of(seed: int, batch: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(seed))


def expected_tokens(model: Any, prompts: torch.Tensor, count: int) -> torch.Tensor:
    generated = model.generate(prompts, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    tokens: torch.Tensor = generated[:, prompts.shape[1] :]
    return tokens


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_tokens_equal_transformers_generate(make_config: Any, changes: dict[str, Any]) -> None:
    from efficientllm.models.transformers_adapter import EfficientLLMConfig, EfficientLLMForCausalLM

    decoder = made(make_config, changes)
    model = EfficientLLMForCausalLM(EfficientLLMConfig(**decoder.config.to_dict())).eval()
    model.decoder.load_state_dict(decoder.state_dict())
    engine = GreedyEngine(decoder, 3, 7, 9)
    assert engine.execution == "launched kernel by kernel (CPU)"
    for seed in range(2):  # a second batch must not see the first one's state
        prompts = prompts_of(seed)
        found = engine.generate(prompts, time_tokens=True)
        assert torch.equal(found.tokens, expected_tokens(model, prompts, 9))
        assert found.token_times == sorted(found.token_times)
        assert len(found.token_times) == 9


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_equal_those_of_transformers_own_llama(make_config: Any, tied: bool) -> None:
    from efficientllm.models.export import to_transformers

    decoder = made(make_config, {"mixer": "gqa", "tie_embeddings": tied})
    model = to_transformers(decoder)
    assert type(model).__name__ == "LlamaForCausalLM"
    prompts = prompts_of(0)
    expected = expected_tokens(model, prompts, 9)
    assert len(set(expected.flatten().tolist())) > 5  # no two repeated tokens that any model would find
    assert torch.equal(GreedyEngine(decoder, 3, 7, 9).generate(prompts).tokens, expected)


def test_tokens_equal_those_of_transformers_own_gpt_neox() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from efficientllm.models.imports import from_transformers

    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=64, bos_token_id=None, eos_token_id=None, hidden_dropout=0.0, attention_dropout=0.0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    prompts = prompts_of(0)
    expected = expected_tokens(model, prompts, 9)
    assert len(set(expected.flatten().tolist())) > 5
    assert torch.equal(GreedyEngine(from_transformers(model), 3, 7, 9).generate(prompts).tokens, expected)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_prompts_computed_in_several_passes_give_the_same_tokens(make_config: Any, changes: dict[str, Any]) -> None:
    decoder, prompts = made(make_config, changes), prompts_of(0)
    whole = GreedyEngine(decoder, 3, 7, 5).generate(prompts).tokens
    in_passes = GreedyEngine(decoder, 3, 7, 5, pass_tokens=8)  # two, two, two and one of each prompt's tokens
    assert torch.equal(in_passes.generate(prompts).tokens, whole)


@pytest.mark.parametrize("name", ["gqa", "mla"])
def test_decoding_again_decodes_the_same_tokens(make_config: Any, name: str) -> None:
    decoder, prompts = made(make_config, CHANGES[name]), prompts_of(0)
    engine = GreedyEngine(decoder, 3, 7, 6)
    expected = engine.generate(prompts).tokens
    engine.prefill(prompts)
    assert engine.cache.length == 7
    for _ in range(3):
        engine.decode()
        assert engine.cache.length == 7 + engine.decoded_tokens == 12
        assert torch.equal(engine._tokens, expected)


@pytest.mark.parametrize("name", ["gqa", "mla", "nsa"])
def test_compiled_decoding_gives_the_same_tokens(make_config: Any, name: str) -> None:
    decoder, prompts = made(make_config, FAMILIES[name]), prompts_of(0)
    shapes = ((3, 7, 9), (2, 5, 6))
    expected = [GreedyEngine(decoder, *shape).generate(prompts[: shape[0], : shape[1]]).tokens for shape in shapes]
    decoder.compile_decoding()
    found = [GreedyEngine(decoder, *shape).generate(prompts[: shape[0], : shape[1]]).tokens for shape in shapes]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def programs_of_two_steps(decoder: Decoder, batch: int, options: dict[str, Any]) -> list[str]:
    """Returns what the compiler makes of a block, for two tokens behind a cache of seven."""
    prompts = prompts_of(0)[:batch]

    def two_steps() -> None:
        decoder.compile_decoding(options)
        for position in (0, 1):
            decoder.hidden_states(prompts[:, position : position + 1], cache=cache)

    with torch.inference_mode(), inductor_config.patch(force_disable_caches=True):
        cache = decoder.new_cache(batch, 53)
        decoder.hidden_states(prompts, cache=cache)
        programs: list[str] = run_and_get_code(two_steps)[1]
    assert programs
    return programs


@pytest.mark.parametrize("name", ["gqa", "mla"])
def test_a_compiled_step_copies_no_cache(make_config: Any, name: str) -> None:
    for program in programs_of_two_steps(made(make_config, FAMILIES[name]), 3, {}):
        given, allocated = (
            [shape.split(", ") for shape in re.findall(call + r"\((?:\w+, )?\((.*?)\)", program)]
            for call in ("assert_size_stride", "empty_strided_cpu")
        )
        cache_lengths = {size for shape in given for size in shape[1:] if size.startswith("s")}  # batches come first
        assert cache_lengths
        assert not [shape for shape in allocated if cache_lengths & set(shape)]


def test_a_compiled_query_is_aligned_where_biased_products_are_the_compilers(make_config: Any) -> None:
    """PyTorch's memory-efficient kernel on a GPU, for float32, refuses a row's stride that is no multiple of four."""
    decoder = made(make_config, FAMILIES["pythia"])
    for program in programs_of_two_steps(decoder, 1, {"post_grad_custom_pre_pass": MatrixVectorProducts()}):
        queries = re.findall(r"scaled_dot_product\w*\.default\(reinterpret_tensor\(\w+, \(.*?\), \((.*?)\)", program)
        assert queries
        assert all(int(stride) % 4 == 0 for query in queries for stride in query.split(", ")[:-1])


def test_an_engine_frees_its_memory_with_its_last_reference(make_config: Any) -> None:
    import weakref

    engine = GreedyEngine(made(make_config, {}), 2, 4, 3)
    engine.generate(prompts_of(0, 2, 4), time_tokens=True)
    cache = weakref.ref(engine.cache.blocks[0].mixer["keys"])
    del engine
    assert cache() is None


def test_what_the_prompts_need_for_a_while_is_told_from_what_stays(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, launched = GreedyEngine(made(make_config, {}), 2, 4, 3), []
    assert engine.unseen_bytes() == 0, "without graphs the allocator sees all"
    monkeypatch.setattr(engine, "_graphs", [lambda: None])
    monkeypatch.setattr(GreedyEngine, "_launch", lambda self, index: launched.append(index))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 + 70 * len(launched))
    assert engine.unseen_bytes() == 70
    assert launched == [0], "the prompts, once"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (None, RECORDED),
        ("slow", "CUDA graphs, one per position; decoding not compiled: that would be slower"),
        ("waits", "CUDA graphs, one per position; decoding not compiled: the host waits"),
        ("compiler", "CUDA graphs, one per position; decoding not compiled: no compiler"),
        ("everything waits", "launched kernel by kernel (no CUDA graphs: the host waits)"),
    ],
)
def test_compiled_steps_are_kept_where_they_can_be_recorded_and_are_faster(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, fault: str | None, says: str
) -> None:
    """Graphs and the compiler are replaced: what decides is tried here, what they do on a GPU in the tests below."""
    decoder, prompts = made(make_config, {}), prompts_of(0)
    expected = GreedyEngine(decoder, 3, 7, 9).generate(prompts).tokens
    compiled: list[bool] = []

    def compiled_block(block: Any, **_: Any) -> Any:
        def run(*inputs: Any) -> Any:
            if fault == "compiler":
                raise RuntimeError("no compiler\nmore")
            compiled.append(True)
            return block(*inputs)

        return run

    def record(steps: Any, device: torch.device, *, prepared: bool = False) -> Any:
        del device
        assert not prepared or compiled
        count = len(compiled)
        for step in steps:
            step()
        if fault == "everything waits" or (fault == "waits" and len(compiled) > count):
            raise RecordingError("the host waits")
        return list(steps)

    def seconds(engine: GreedyEngine, found: Any, plain: Any) -> list[float]:
        assert found == engine._graphs[1:5]
        assert len(found) == len(plain)
        return [2.0, 1.0] if fault == "slow" else [1.0, 2.0]

    monkeypatch.setattr(torch, "compile", compiled_block)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr("efficientllm.serving.engine.record", record)
    monkeypatch.setattr(GreedyEngine, "_seconds", seconds)
    engine = GreedyEngine(decoder, 3, 7, 9)
    for _ in range(2):  # a decoder that an earlier engine has left compiled
        with torch.inference_mode():
            engine._record(9)
        assert engine.execution == says
        compiled.clear()
        assert torch.equal(engine.generate(prompts).tokens, expected)
        assert bool(compiled) == (fault is None)


@pytest.mark.parametrize("batch", [1, 3])
def test_products_with_a_vector_are_the_engines_own(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    decoder, prompts = made(make_config, {}), prompts_of(0)[:batch]
    expected = GreedyEngine(decoder, batch, 7, 9).generate(prompts).tokens
    asked: list[tuple[str, dict[str, Any]]] = []

    def compiled(function: Any, **how: Any) -> Any:
        asked.append((getattr(function, "__name__", "block"), how.get("options", {})))
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr("efficientllm.serving.engine.record", lambda steps, device, **_: list(steps))
    engine = GreedyEngine(decoder, batch, 7, 9)
    with torch.inference_mode():
        assert engine._compile(engine_steps(engine)) is None
    assert torch.equal(engine.generate(prompts).tokens, expected)
    rewriting = [options.pop("post_grad_custom_pre_pass", None) for _, options in asked]
    kind = MatrixVectorProducts if batch == 1 else PackedProducts
    assert all(isinstance(made, kind) for made in rewriting[: decoder.config.layers])
    single = {"triton.enable_pdl": True}
    blocks = [("block", single if batch == 1 else {})] * decoder.config.layers
    head = [("project", single)] if batch == 1 else []
    assert asked == [*blocks, *head, ("_most_likely", {})]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "logits",
    [torch.randn(3, 640), torch.randint(9, (3, 640)).to(torch.bfloat16), torch.full((3, 128), -3.0)],
    ids=["all different", "many equal", "all equal"],
)
def test_the_most_likely_of_parts_is_that_of_all(logits: torch.Tensor, batch: int) -> None:
    assert torch.equal(_most_likely_by_parts(logits[:batch]), logits[:batch].argmax(dim=-1))


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_decoding_behind_no_prompt_runs_and_leaves_nothing_behind(make_config: Any, changes: dict[str, Any]) -> None:
    """As the steps run that compiled ones are compared with."""
    decoder, prompts = made(make_config, changes), prompts_of(0)
    expected = GreedyEngine(decoder, 3, 7, 9).generate(prompts).tokens
    engine = GreedyEngine(decoder, 3, 7, 9)
    with torch.inference_mode():
        for _ in range(2):
            engine._first_decoding_step()
            for index in range(2, 5):
                engine._launch(index)
    assert engine.cache.length == 7 + 4
    assert torch.equal(engine.generate(prompts).tokens, expected)


def engine_steps(engine: GreedyEngine) -> list[Any]:
    return [functools.partial(engine._launch, index) for index in range(3)]


def on_gpu(decoder: Decoder, prompts: torch.Tensor) -> tuple[str, torch.Tensor]:
    engine = GreedyEngine(decoder.cuda(), len(prompts), 7, 24)
    first = engine.generate(prompts.cuda(), time_tokens=True)
    assert first.token_times == sorted(first.token_times)
    again = engine.generate(prompts.cuda()).tokens
    assert torch.equal(first.tokens, again)
    return engine.execution, again.cpu()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_graphs_give_the_same_tokens(make_config: Any, changes: dict[str, Any], batch: int) -> None:
    decoder, prompts = made(make_config, changes), prompts_of(0)[:batch]
    expected = GreedyEngine(decoder, batch, 7, 24).generate(prompts).tokens
    execution, found = on_gpu(decoder, prompts)
    if changes.get("feedforward") == "moe":  # whose experts in float32 are a loop over what the host has to know
        assert execution.startswith("launched kernel by kernel (no CUDA graphs: the host waits for the device")
    else:
        assert execution in (RECORDED, "CUDA graphs, one per position; decoding not compiled: that would be slower")
    assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["gqa", "mha", "pythia", "mamba2", "learned-moe"])
def test_graphs_of_half_precision_give_the_logits_of_plain_steps(make_config: Any, name: str, batch: int) -> None:
    """Norms and gates are then part of the products."""
    changes = CHANGES[name] | {"hidden_size": 64, "intermediate_size": 96}
    decoder = made(make_config, changes).to(torch.bfloat16).cuda()
    prompts = prompts_of(0)[:batch].cuda()
    engine = GreedyEngine(decoder, batch, 7, 24)
    assert engine.execution in (RECORDED, "CUDA graphs, one per position; decoding not compiled: that would be slower")
    tokens = engine.generate(prompts).tokens
    with torch.inference_mode():
        logits = decoder(torch.cat((prompts, tokens), dim=1)).logits[:, 6:-1].float()
    # near ties are decided by roundings: what was taken is as likely as the best
    best, taken = logits.amax(-1), logits.gather(-1, tokens[..., None])[..., 0]
    assert (best - taken).max() < 0.05 * logits.std()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("key", "options", "recorded"),
    [
        ("int8", {"outlier_threshold": 6.0, "compute_type": "float16"}, False),
        ("int8", {"outlier_threshold": 0.0, "compute_type": "float16"}, True),
        ("int4", {"quantization_type": "nf4", "double_quantization": True, "compute_type": "bfloat16"}, True),
    ],
)
def test_what_waits_for_the_device_is_launched_and_says_so(
    make_config: Any, key: str, options: dict[str, Any], recorded: bool
) -> None:
    decoder = made(make_config, {"hidden_size": 64, "intermediate_size": 128}).cuda()
    precision(key).convert(decoder, precision(key).options(options))
    execution, _ = on_gpu(decoder, prompts_of(0))
    if recorded:
        assert execution.startswith("CUDA graphs, one per position")
    else:
        assert execution.startswith("launched kernel by kernel (no CUDA graphs: the host waits for the device")
    # and the device is as usable as before
    expected = GreedyEngine(decoder, 3, 7, 9).generate(prompts_of(0).cuda()).tokens
    assert expected.shape == (3, 9)


def test_alternatives_are_timed_by_turns(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first replays, on a device that was idle, are slow for both."""
    engine = GreedyEngine(made(make_config, {}), 3, 7, 9)
    now, order = [0.0], list[str]()

    def step(name: str, seconds: float) -> Any:
        def run() -> None:
            now[0] += seconds * (10 if len(order) < 2 else 1)
            order.append(name)

        return run

    monkeypatch.setattr("efficientllm.serving.engine.time.perf_counter", lambda: now[0])
    assert engine._seconds([step("a", 2.0)], [step("b", 3.0)]) == pytest.approx([2.0, 3.0])
    assert order == ["a", "b"] * 5


def read_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    for module in (decoder_module, spans):
        monkeypatch.setattr(module, "reads_whole_rows", lambda position, mixer, device: True)


@pytest.mark.parametrize("name", ["mla", "relative"])
def test_rows_behind_the_last_key_are_read_and_change_nothing(
    make_config: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = made(make_config, CHANGES[name])
    expected = [GreedyEngine(decoder, 3, 7, count).generate(prompts_of(0)).tokens for count in (12, 3)]
    read_whole_rows(monkeypatch)
    read: list[int] = []
    mask_of = spans.causal_mask

    def noted(span: Any, device: torch.device) -> Any:
        if span.length == 1:
            read.append(span.keys)
        return mask_of(span, device)

    monkeypatch.setattr(spans, "causal_mask", noted)
    for tokens in expected:
        read.clear()
        engine = GreedyEngine(decoder, 3, 7, tokens.shape[1])
        assert torch.equal(engine.generate(prompts_of(0)).tokens, tokens)
        assert read == [*(-(-end // 8) * 8 for end in range(8, 7 + tokens.shape[1]))]
        engine.decode()  # the rows behind the last key now hold what was there before
        assert torch.equal(engine._tokens, tokens)


@pytest.mark.parametrize(
    ("name", "length"), [("gqa", 35), ("mla", 35), ("relative", 35), ("nsa-wide", 35), ("nsa-wide", 7)]
)
@pytest.mark.parametrize("own", [True, False])
def test_programs_of_the_first_steps_serve_every_position(
    make_config: Any, name: str, length: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU what is compiled later cannot be recorded, with our kernel or without."""
    if own:
        monkeypatch.setattr(attention, "decodes_by_own_kernel", lambda *_: True)
    else:
        read_whole_rows(monkeypatch)
    monkeypatch.setattr(attention, "decodes_by_products", lambda device: True)
    decoder, prompts = made(make_config, CHANGES[name]), prompts_of(0, length=length)  # 40 keys, and nothing else of 40
    expected = GreedyEngine(decoder, 3, length, 24).generate(prompts).tokens
    torch.compiler.reset()
    decoder.compile_decoding()
    programs: list[int] = []
    step = GreedyEngine._step

    def counted(self: GreedyEngine, index: int) -> None:
        step(self, index)
        programs.append(counters["stats"]["unique_graphs"])

    monkeypatch.setattr(GreedyEngine, "_step", counted)
    assert torch.equal(GreedyEngine(decoder, 3, length, 24).generate(prompts).tokens, expected)
    prepared = max(4, decoder.decoding_period)
    assert programs[prepared] > programs[0]
    assert programs[-1] == programs[prepared]
