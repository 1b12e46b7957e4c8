"""Bad input, and what it is called on the page docs/errors.md. The page holds the line that each of them yields.

python -m pytest tests/bad_input          # each line is the page's
python tests/bad_input/write_page.py      # after a change of words, writes the page anew; read its diff
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

Spoil = Callable[[Path], None]
PARAMETERS = "params.yaml"
PROFILE = "profiles/smoke.yaml"
GONE = object()
DATA = "data"
MODEL = "model"


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        group: Heading of the page.
        given: The input in words, unique.
        spoil: Puts it into a project's folder, which is the working directory.
        names: What the line must name: the parameter or file, and a word of the remedy.
        stage: Module of `stages` that meets it.
        arguments: Its command line.
        needs: What the folder must hold before: "data" that is prepared, a "model" that is pretrained.
        code: Exit code.
        hidden: Pattern of the part of the line that another library words; left out of the page.
        skip: Why it cannot be tried here, None where it can.
    """

    group: str
    given: str
    spoil: Spoil
    names: tuple[str, ...]
    stage: str = "probe"
    arguments: tuple[str, ...] = ()
    needs: str | None = None
    code: int = 1
    hidden: str | None = None
    skip: Callable[[], str | None] = lambda: None


def edit(path: Path, key: str, value: object) -> None:
    """Sets, or removes (`GONE`), one key of a YAML file."""
    yaml = YAML()
    content = yaml.load(path.read_text(encoding="utf-8"))
    *parents, last = key.split("/")
    block = content
    for parent in parents:
        block = block[parent]
    if value is GONE:
        del block[last]
    else:
        block[last] = value
    with path.open("w", encoding="utf-8") as stream:
        yaml.dump(content, stream)


def _value(value: object) -> str:
    text = json.dumps(value) if isinstance(value, str | list | dict | bool) or value is None else str(value)
    return text if len(text) < 40 else f"{text[:36]} ..."


def _set(file: str, group: str, key: str, value: object, *names: str, **further: Any) -> Case:
    dotted = key.replace("/", ".")
    given = f"`{dotted}` left out" if value is GONE else f"`{dotted}: {_value(value)}`"
    return Case(group, given, lambda root: edit(root / file, key, value), names, **further)


def in_parameters(key: str, value: object, *names: str, **further: Any) -> Case:
    return _set(PARAMETERS, "params.yaml", key, value, *names, **further)


def in_profile(key: str, value: object, *names: str, **further: Any) -> Case:
    return _set(PROFILE, "profiles/<profile>.yaml", key, value, *names, **further)


def with_parameters(given: str, spoil: Spoil, *names: str, **further: Any) -> Case:
    return Case("params.yaml", given, spoil, names, **further)


def write(name: str, content: bytes | str) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(root: Path) -> None:
        for one in spoils:
            one(root)

    return spoil


def replaced_by_folder(root: Path) -> None:
    (root / PARAMETERS).unlink()
    (root / PARAMETERS).mkdir()


def unreadable(name: str) -> Spoil:
    return lambda root: (root / name).chmod(0)


def root_reads_all() -> str | None:
    return "root may read everything" if os.geteuid() == 0 else None


def has_gpu() -> str | None:
    import torch

    return "there is a GPU" if torch.cuda.is_available() else None


PARAMETER_CASES = [
    in_parameters("sed", 1, "'sed'", "did you mean 'seed'"),
    in_parameters("seed", GONE, "'seed'", "add it"),
    in_parameters("seed", -1, "'seed'", "greater than or equal to 0"),
    in_parameters("seed", 1.5, "'seed'", "valid integer"),
    in_parameters("seed", True, "'seed'", "valid integer"),
    in_parameters("seed", 2**40, "'seed'", "less than"),
    in_parameters("seed", "zero", "'seed'", "valid integer"),
    in_parameters("methods", "lora", "'methods'", "valid list"),
    in_parameters("methods", [], "'methods'", "at least 1"),
    in_parameters("methods", ["lora", "lora"], "tuning method", "twice"),
    in_parameters("methods", ["lora", "lorra"], "'lorra'", "did you mean 'lora'"),
    in_parameters("method", "dorra", "'dorra'", "did you mean 'dora'"),
    in_parameters("method", "x; rm -rf ~", "'x; rm -rf ~'", "known: dora"),
    in_parameters("method", "full", "method is 'full'", "add it to `methods`"),
    in_parameters("profile", "smoek", "'smoek'", "did you mean 'smoke'"),
    in_parameters("profile", "../../etc/passwd", "'../../etc/passwd'", "known: smoke"),
    in_parameters("profile", "smoke\n", PARAMETERS, "control character"),
    in_parameters("method", "lora\0", PARAMETERS, "control character"),
    in_parameters("method", "x" * 5000, "unknown tuning method", "known:"),
    in_parameters("precisions", ["int5"], "'int5'", "did you mean 'int8'"),
    in_parameters("sizes", ["tiny"], "'tiny'", "known: large"),
    in_parameters("architectures", [], "'architectures'", "valid dictionary"),
    in_parameters("architectures/dense_small/mixer", "mqaa", "mixer", "did you mean 'mqa'"),
    in_parameters("architectures/dense_small/size", "huge", "'huge'", "known: large"),
    in_parameters("architectures/dense_small/mixr", "mqa", "mixr", "did you mean 'architectures.dense_small.mixer'"),
    in_parameters("architectures/dense_small/block", GONE, "architectures.dense_small.block", "add it"),
    in_parameters("bases", {"medium": "artifacts/pretrain/dense_small"}, "'bases.small'", "a checkpoint"),
    in_parameters("bases", {}, "'bases'", "at least 1"),
    in_parameters("bases/small", "nowhere", "bases.small", "which does not exist"),
    in_parameters("bases/small", "", "'bases.small'", "at least 1 character"),
    in_parameters("bases/small", "artifacts/pretrain/dense_smal", "'dense_smal'", "add it, or change bases.small"),
    in_parameters("bases/huge", "model.gguf", "'huge'", "known: large"),
    in_parameters("replicas/seeds", [0], "replicas.seeds", "none is the run's own"),
    in_parameters("replicas/seeds", [1, 1], "replicas.seeds", "named once"),
    in_parameters("replicas/seeds", ["1; touch x"], "'replicas.seeds.0'", "valid integer"),
    in_parameters("replicas/architectures", ["transformer"], "replicas.architectures", "'transformer'", "known: dense_large"),
    in_parameters("replicas/methods", ["lorra"], "replicas.methods", "did you mean 'lora'"),
    with_parameters(
        "`replicas` of a run that `architectures` leaves out",
        both(
            lambda root: edit(root / PARAMETERS, "replicas/seeds", [1]),
            lambda root: edit(root / PARAMETERS, "replicas/architectures", ["mqa"]),
        ),
        "replicas.architectures", "take it out",
    ),
    with_parameters(
        "an architecture named `x$(touch y)`",
        lambda root: edit(root / PARAMETERS, "architectures/x$(touch y)", {
            "size": "small", "block": "pre_norm", "mixer": "gqa", "position": "rope", "feedforward": "swiglu",
        }),
        "'x$(touch y)'", "letters, digits and underscores",
    ),
    with_parameters(
        "an architecture that no row of the ranking asks for",
        lambda root: edit(root / PARAMETERS, "architectures/mqa_2", {
            "size": "small", "block": "pre_norm", "mixer": "mqa", "position": "rope", "feedforward": "swiglu",
        }),
        "'mqa_2'", "efficientllm/registry.py",
    ),
    with_parameters("no file", lambda root: (root / PARAMETERS).unlink(), PARAMETERS, "git checkout"),
    with_parameters("an empty file", write(PARAMETERS, ""), PARAMETERS, "mapping"),
    with_parameters("a list in place of a mapping", write(PARAMETERS, "- 1\n"), PARAMETERS, "mapping"),
    with_parameters("a folder of that name", replaced_by_folder, PARAMETERS, "readable file"),
    with_parameters("no permission to read it", unreadable(PARAMETERS), PARAMETERS, "readable file", skip=root_reads_all),
    with_parameters("UTF-16", write(PARAMETERS, "seed: 0\n".encode("utf-16")), PARAMETERS, "save it as UTF-8"),
    with_parameters("a bracket that is not closed", write(PARAMETERS, "seed: [1\n"), PARAMETERS, "line", "correct it"),
    with_parameters("the same key twice", write(PARAMETERS, "seed: 0\nseed: 1\n"), "line 2", "duplicate key"),
    with_parameters("a tab for indentation", write(PARAMETERS, "a:\n\t- 1\n"), "line 2", "correct it"),
    with_parameters("a NUL byte", write(PARAMETERS, b"seed: 0\x00\n"), PARAMETERS, "correct it"),
    with_parameters("a tag of Python's", write(PARAMETERS, "seed: !!python/object/apply:os.getpid []\n"), "line 1", "tag"),
    with_parameters("a value that refers to itself", write(PARAMETERS, "seed: &a [*a]\n"), PARAMETERS, "write it out"),
    with_parameters("brackets 3000 deep", write(PARAMETERS, "[" * 3000), PARAMETERS, "nested too deeply"),
]  # fmt: skip

PROFILE_CASES = [
    in_profile("pretrain/training/stepz", 3, "pretrain.training.stepz", "did you mean 'pretrain.training.steps'"),
    in_profile("pretrain/training/steps", 0, "pretrain.training.steps", "greater than or equal to 1"),
    in_profile("pretrain/training/steps", 10**30, "pretrain.training.steps", "less than"),
    in_profile("pretrain/training/batch_size", -4, "pretrain.training.batch_size", "greater than or equal to 1"),
    in_profile("pretrain/training/weight_decay", float("nan"), "weight_decay", "finite number"),
    in_profile("pretrain/training/autocast", "float8", "autocast", "'bfloat16'"),
    in_profile("pretrain/training/compile", "everything", "compile", "'blocks'"),
    in_profile("pretrain/training/sequence_length", 129, "pretrain.training.sequence_length", "raise the context"),
    in_profile(
        "pretrain/training/sequence_length", 0, "pretrain.training.sequence_length", "greater than or equal to 8"
    ),
    in_profile("tune/training/sequence_length", 129, "tune.training.sequence_length", "raise the context"),
    in_profile(
        "tune/training/batch_sizes",
        {"small": 4, "medium": 0, "large": 4},
        "tune.training.batch_sizes.medium",
        "greater than",
    ),
    in_profile("tune/training/optimizer", "sgd", "tune.training.optimizer", "'adamw_8bit'"),
    in_profile("tune/training/optimizer", "adamw_8bit", "tune.training.optimizer", "set it to adamw", skip=has_gpu),
    in_profile("architectures/dense_small", GONE, "architectures.dense_small", "learning rate"),
    in_profile("architectures/dense_small/learning_rate", 0.0, "learning_rate", "greater than 0"),
    in_profile("architectures/dense_small/learning_rate", float("inf"), "learning_rate", "finite"),
    in_profile("architectures/dense_small/learning_rate", 1000.0, "learning_rate", "less than or equal to 10"),
    in_profile("architectures/dense_small/kernel", "fastest", "kernel", "'reference'"),
    in_profile("architectures/dense_small/mixer", {"window": 3}, "mixer.window", "known: bias"),
    Case(
        "profiles/<profile>.yaml",
        "`kernel: fast` of NSA, on a CPU",
        both(
            lambda root: edit(
                root / PARAMETERS,
                "architectures/nsa",
                {
                    "size": "small",
                    "block": "pre_norm",
                    "mixer": "nsa",
                    "position": "rope",
                    "feedforward": "swiglu",
                },
            ),
            lambda root: edit(root / PROFILE, "architectures/nsa/kernel", "fast"),
        ),
        ("architecture 'nsa'", "use kernel 'auto'"),
        skip=has_gpu,
    ),
    in_profile("models/small/heads", "four", "models.small.heads", "valid integer"),
    in_profile("models/small/heads", 5, "heads 5", "multiple"),
    in_profile("models/small/key_value_heads", 3, "key_value_heads", "3"),
    in_profile("models/small/hidden_size", 12, "even width", "change hidden_size"),
    in_profile("models/small/layers", 10**6, "models.small.layers", "less than or equal to 1024"),
    in_profile("models/small/vocabulary_size", 300, "vocabulary_size", "512"),
    in_profile("models/small", GONE, "of architecture dense_small", "known: large, medium"),
    in_profile("models", {}, "'models'", "at least 1"),
    in_profile("data/source", "web", "data.source", "'huggingface'"),
    in_profile("data/source", "files", "data.source", "data.files"),
    in_profile("data/source", "huggingface", "data.source", "data.huggingface"),
    in_profile("data/validation_fraction", 0.5, "data.validation_fraction", "less than 0.5"),
    in_profile("data/tokenizer/train_vocabulary_size", 100, "train_vocabulary_size", "257"),
    in_profile("data/tokenizer/train_vocabulary_size", None, "data.tokenizer", "exactly one"),
    in_profile("data/tokenizer/path", "tokenizer.json", "data.tokenizer", "exactly one"),
    in_profile("data/task/path", "task.jsonl", "data.task", "source 'file'"),
    in_profile("parallel/strategy", "deepspeed", "parallel.strategy", "'fsdp'"),
    in_profile("parallel/processes", 0, "parallel.processes", "'auto' or"),
    in_profile("parallel", {"strategy": "ddp", "processes": 3}, "batch_size is 4", "parallel.processes", skip=has_gpu),
    in_profile("tune/methods/lora", GONE, "tune.methods.lora", "settings"),
    in_profile("tune/training/warmup_steps", 5, "tune.training.warmup_steps", "lower it"),
    in_profile("tune/methods/lora/rnk", 3, "tune.methods.lora.rnk", "did you mean 'tune.methods.lora.rank'"),
    in_profile("tune/methods/lora/rank", 0, "tune.methods.lora.rank", "greater than or equal to 1"),
    in_profile("tune/methods/lora/rank", 2**40, "tune.methods.lora.rank", "less than"),
    in_profile("tune/methods/lora/rank", GONE, "tune.methods.lora.rank", "add it"),
    in_profile("tune/methods/lora/dropout", 1.5, "tune.methods.lora.dropout", "less than"),
    in_profile("tune/methods/lora/learning_rate/small", -1.0, "learning_rate.small", "greater than 0"),
    in_profile("tune/methods/lora/learning_rate", 0.1, "learning_rate", "dictionary"),
    in_profile("quantize/int4", GONE, "quantize.int4", "settings"),
    in_profile("quantize/int4/quantization_type", "nf5", "quantize.int4.quantization_type", "'nf4' or 'fp4'"),
    in_profile("quantize/int4/compute_type", "float64", "quantize.int4.compute_type", "'bfloat16'"),
    in_profile("measure/repeats", True, "measure.repeats", "valid integer"),
    in_profile("measure/window_seconds", 0.0, "measure.window_seconds", "greater than 0"),
    in_profile("measure/serving_prompt_length", 200, "serving_prompt_length", "raise the context"),
    in_profile("measure/serving_batches", [1, 1], "measure.serving_batches", "once"),
    in_profile("measure/serving_batches", [0], "measure.serving_batches.0", "greater than or equal to 1"),
    in_profile("measure/country_iso_code", "us", "measure.country_iso_code", "pattern"),
    in_profile("measure/country_iso_code", "XYZ", "measure.country_iso_code", "USA"),
    in_profile("measure", GONE, "'measure'", "add it"),
]


def corpus(given: str, name: str, content: bytes | str, *names: str, **further: Any) -> Case:
    """A file as the only one of `data.files`."""

    def spoil(root: Path) -> None:
        write(name, content)(root)
        files_source(root, [name])

    return Case("Text and tasks", given, spoil, names, **{"stage": "prepare", **further})


def files_source(root: Path, patterns: list[str]) -> None:
    edit(root / PROFILE, "data/source", "files")
    edit(root / PROFILE, "data/files", {"paths": patterns, "text_field": "text", "licence": "CC0-1.0"})


def task(given: str, lines: list[object] | str, *names: str, **further: Any) -> Case:
    """A task file of these lines beside a good corpus."""

    def spoil(root: Path) -> None:
        good_corpus(root)
        text = lines if isinstance(lines, str) else "\n".join(json.dumps(line) for line in lines)
        write("task.jsonl", text)(root)
        edit(root / PROFILE, "data/task/source", "file")
        edit(root / PROFILE, "data/task/path", "task.jsonl")

    return Case("Text and tasks", given, spoil, names, **{"stage": "prepare", **further})


SENTENCE = "The quick brown fox jumps over the lazy dog; naïve words, 1234 numbers. "


def good_corpus(root: Path) -> None:
    documents = [{"text": f"Document {number}. " + SENTENCE * 60} for number in range(4)]
    write("corpus.jsonl", "\n".join(json.dumps(document) for document in documents))(root)
    files_source(root, ["corpus.jsonl"])
    edit(root / PROFILE, "data/tokenizer/train_vocabulary_size", 270)


def tokenizer(given: str, content: str, *names: str) -> Case:
    def spoil(root: Path) -> None:
        good_corpus(root)
        write("tokenizer.json", content)(root)
        edit(root / PROFILE, "data/tokenizer/train_vocabulary_size", None)
        edit(root / PROFILE, "data/tokenizer/path", "tokenizer.json")

    return Case("Text and tasks", given, spoil, names, stage="prepare")


def words_only(words: list[str]) -> str:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(backend.to_str())


def hostile_link(root: Path) -> None:
    (root / "texts").mkdir()
    (root / "secret.txt").write_text("a secret")
    (root / "texts" / "a.txt").symlink_to(root / "secret.txt")
    files_source(root, ["texts/*.txt"])


def set_files(key: str, value: object) -> Spoil:
    return both(good_corpus, lambda root: edit(root / PROFILE, f"data/files/{key}", value))


def wrong_parquet(root: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": ["a"]}), root / "a.parquet")
    files_source(root, ["a.parquet"])


GOOD_ROW = {"instruction": "Add.", "input": "1+1", "output": "2", "choices": ["2", "3"]}

DATA_CASES = [
    Case("Text and tasks", "a pattern that matches nothing", lambda root: files_source(root, ["texts/*.txt"]),
         ("'texts/*.txt'", "relative to")),
    Case("Text and tasks", "a link out of the pattern's folder", hostile_link, ("texts/a.txt", "copy what it leads to"),
         hidden=r"(?<=a link to ).*(?=, out of)"),
    Case("Text and tasks", "no permission to read a text", both(good_corpus, unreadable("corpus.jsonl")),
         ("corpus.jsonl", "permissions"), skip=root_reads_all),
    Case("Text and tasks", "`data.files.licence: \"\"`", set_files("licence", ""), ("data.files.licence", "at least 1")),
    Case("Text and tasks", "`data.files.licence` left out", set_files("licence", GONE), ("data.files.licence", "add it")),
    Case("Text and tasks", "`data.files.paths: []`", set_files("paths", []), ("data.files.paths", "at least 1")),
    Case("Text and tasks", "`data.files.paths: [\"a\\0b\"]`", set_files("paths", ["a\0b"]), ("control character",)),
    corpus("an empty text file", "a.txt", b" \n", "a.txt", "remove it"),
    corpus("a text file in Latin-1", "a.txt", b"fine\nna\xefve\n", "a.txt, line 2", "iconv"),
    corpus("a corrupt line of JSONL", "a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl, line 2", "one object a line"),
    corpus("brackets 100000 deep in JSONL", "a.jsonl", "[" * 100_000, "a.jsonl, line 1", "nested too deeply"),
    corpus("JSONL without the text's field", "a.jsonl", '{"body": "a"}\n', "a.jsonl, line 1", "data.files.text_field"),
    corpus("a number in place of a text", "a.jsonl", '{"text": 3}\n', "a.jsonl, line 1", "data.files.text_field"),
    corpus("half a character", "a.jsonl", '{"text": "a\\ud800"}\n', "a.jsonl, line 1", "repair the file"),
    corpus("a parquet file that is none", "a.parquet", b"PAR1 no", "a.parquet", "write it anew", hidden=r"(?<=\().*(?=\))"),
    Case("Text and tasks", "a parquet file without the column", wrong_parquet, ("a.parquet", "its columns: body"),
         stage="prepare"),
    corpus("a picture", "a.png", b"\x89PNG", "a.png", "known: .txt"),
    corpus("two documents", "a.jsonl", '{"text": "one"}\n{"text": "two"}\n', "2 documents", "give at least 3"),
    corpus("too little text for one batch", "a.jsonl", "".join(f'{{"text": "short {n}"}}\n' for n in range(4)),
           "fewer than a batch", "give more text"),
    Case("Text and tasks", "more examples than there are passages",
         lambda root: edit(root / PROFILE, "data/task/training_examples", 10**6),
         ("data.task.training_examples", "lower it"), stage="prepare"),
    Case("Text and tasks", "`data.task.path` of no file", both(
        lambda root: edit(root / PROFILE, "data/task/source", "file"),
        lambda root: edit(root / PROFILE, "data/task/path", "nowhere.jsonl")), ("nowhere.jsonl", "relative to")),
    task("an example without an output", [{"instruction": "Add."}], "task.jsonl, line 1", "'output' is missing"),
    task("an output that is none of the choices", [GOOD_ROW | {"output": "4"}], "task.jsonl, line 1", "choices"),
    task("choices that are the same", [GOOD_ROW | {"choices": ["2", "2"]}], "task.jsonl, line 1", "different texts"),
    task("two questions in all", [GOOD_ROW, GOOD_ROW | {"input": "2+0"}], "data.task.path", "at least 3"),
    task("an empty task", "\n", "task.jsonl", "is empty"),
    tokenizer("a corrupt tokenizer.json", "{", "tokenizer.json", "save it by that library"),
    tokenizer("a tokenizer without an end token", words_only(["<unk>", "The"]), "tokenizer.json", "eos_token"),
    tokenizer("a tokenizer too small for the text", words_only(["<eos>", "The", "quick"]), "tokenizer.json", "byte-level"),
    Case("Text and tasks", "a task whose answers are longer than a sequence", lambda root: write(
        "artifacts/data/task/train.jsonl", json.dumps(
            {"choices": [], "document": "", "group": "file", "input": "", "instruction": "Say it.", "output": "long " * 99}
        ))(root), ("task/train.jsonl, line 1", "tune.training.sequence_length"), "tune", ("--method", "lora", "--size", "small"),
        needs=MODEL),
]  # fmt: skip


def base(given: str, spoil: Spoil, source: str, *names: str, **further: Any) -> Case:
    return Case(
        "Bases", given, both(spoil, lambda root: edit(root / PARAMETERS, "bases/small", source)), names,
        **{"stage": "base", "arguments": ("--size", "small"), "needs": DATA, **further},
    )  # fmt: skip


def llama(root: Path, **changes: Any) -> Path:
    """A small checkpoint in the folder `checkpoint`, with the prepared data's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from efficientllm.data.tokenizer import copy_tokenizer

    folder = root / "checkpoint"
    torch.manual_seed(0)
    shape = {"vocab_size": 270, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(shape | changes))).save_pretrained(folder)
    copy_tokenizer(root / "artifacts" / "data", folder)
    return folder


def pickled(root: Path) -> None:
    folder = llama(root)
    (folder / "model.safetensors").unlink()
    # pickle's own opcodes: on loading it would call os.system
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pickled'\ntR.")


def truncated(root: Path) -> None:
    weights = llama(root) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def more_layers(root: Path) -> None:
    edit_json(llama(root) / "config.json", num_hidden_layers=2)


def other_width(root: Path) -> None:
    edit_json(llama(root) / "config.json", intermediate_size=32)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def in_integers(root: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = llama(root) / "model.safetensors"
    weights = {name: tensor.to(torch.int8) if ".mlp." in name else tensor for name, tensor in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})


def letters_only(root: Path) -> None:
    import string

    from tokenizers import Tokenizer, models

    tokens = {token: number for number, token in enumerate(["</s>", "<unk>", *string.ascii_letters])}
    folder = llama(root)
    (folder / "tokenizer.json").write_text(Tokenizer(models.BPE(tokens, [], unk_token="<unk>")).to_str())
    edit_json(folder / "tokenizer_config.json", bos_token=None, eos_token="</s>", pad_token=None)


def few_embeddings(root: Path) -> None:
    llama(root, vocab_size=200)


def own_in_integers(root: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from efficientllm.data.tokenizer import copy_tokenizer

    folder = root / "checkpoint"
    folder.mkdir()
    shutil.copy(root / "artifacts/pretrain/dense_small/config.json", folder)
    copy_tokenizer(root / "artifacts" / "data", folder)
    weights = load_file(root / "artifacts/pretrain/dense_small/model.safetensors")
    save_file(
        {name: tensor.to(torch.int8) for name, tensor in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def endless_header(root: Path) -> None:
    (llama(root) / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def other_family(root: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = llama(root)
    GPT2LMHeadModel(GPT2Config(vocab_size=270, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)


def gguf_header(keys: int) -> bytes:
    return (
        b"GGUF" + (3).to_bytes(4, "little") + (2**40).to_bytes(8, "little") + keys.to_bytes(8, "little") + b"\xff" * 64
    )


BASE_CASES = [
    base("a folder without a checkpoint", lambda root: (root / "empty").mkdir(), "empty", "empty", "config.json"),
    base("a checkpoint without weights", lambda root: (llama(root) / "model.safetensors").unlink(), "checkpoint",
         "checkpoint", "model.safetensors", "save_pretrained"),
    base("a checkpoint whose weights are pickled", pickled, "checkpoint", "pytorch_model.bin", "safe_serialization"),
    base("a checkpoint that is cut off", truncated, "checkpoint", "checkpoint", "get it again", hidden=r"(?<=loaded \().*(?=\))"),
    base("a checkpoint that lacks a layer of its configuration", more_layers, "checkpoint", "checkpoint", "lacks", "model.layers.1."),
    base("a checkpoint of another shape than its configuration", other_width, "checkpoint", "checkpoint", "[16, 16]", "[32, 16]"),
    base("a tokenizer with more tokens than the model has embeddings", few_embeddings, "checkpoint", "bases.small", "200 embeddings"),
    base("a checkpoint in 8 bits whose configuration does not say so", in_integers, "checkpoint", "checkpoint", "model.safetensors",
         "mlp.down_proj.weight as I8", "unquantized checkpoint"),
    base("a tokenizer that knows letters only", letters_only, "checkpoint", "bases.small", "checkpoint", "held-out text", "byte-level"),
    base("weights of this pipeline in 8 bits", own_in_integers, "checkpoint", "bases.small", "I8", needs=MODEL),
    base("a header of 4 EiB", endless_header, "checkpoint", "checkpoint", "get it again", hidden=r"(?<=loaded \().*(?=\))"),
    base("a family of models that cannot be read", other_family, "checkpoint", "'gpt2'", "known are"),
    base("a checkpoint for short sequences", lambda root: llama(root, max_position_embeddings=16) and None, "checkpoint",
         "sequence_length", "16 tokens"),
    base("a config.json that is none", lambda root: (llama(root) / "config.json").write_text("{"), "checkpoint", "config.json", "get it again"),
    base("a .gguf that is none", write("a.gguf", b"GGUF nonsense"), "a.gguf", "a.gguf", "get it again", hidden=r"(?<=loaded \().*(?=\))"),
    base("a .gguf that promises 2^62 keys", write("a.gguf", gguf_header(2**62)), "a.gguf", "a.gguf", "get it again",
         hidden=r"(?<=loaded \().*(?=\))"),
    base("a .yaml that names nothing", write("a.yaml", "url: x\n"), "a.yaml", "a.yaml", "hub, package, shape"),
    base("a .yaml of the hub without a commit", write("a.yaml", "hub: a/b\nrevision: main\n"), "a.yaml", "revision", "pattern"),
    base("a .yaml of a package that is not installed",
         write("a.yaml", f"package: no-such-package\nversion: '1'\nfile: a.gguf\nsha256: {'a' * 64}\n"), "a.yaml",
         "no-such-package", "pip install"),
    base("a .yaml whose shape lacks a field", write("a.yaml", "shape: {layers: 1}\n"), "a.yaml", "a.yaml", "lacks"),
]  # fmt: skip


def artifact(given: str, spoil: Spoil, stage: str, arguments: tuple[str, ...], *names: str, **further: Any) -> Case:
    return Case("Artifacts", given, spoil, names, stage, arguments, **{"needs": MODEL, **further})


RECORD = "artifacts/measure/pretrain/dense_small.json"


def record(**changes: Any) -> Spoil:
    """A record that breaks the contract: strict JSON has no NaN, but Python's reader takes it."""
    good = {
        "axis": "pretrain", "cell": "dense_small", "technique": "dense_small", "size": "small", "status": "failed",
        "reason": "out of memory", "provenance": {"seed": 0, "profile": "smoke"},
    }  # fmt: skip
    return write(RECORD, json.dumps(good | changes))


FACTS = {
    "parameters_total": 1, "parameters_active": 1, "parameters_trainable": 1, "bytes_on_disk": 1, "bytes_in_memory": 1,
}  # fmt: skip
NAN = {"value": float("nan"), "unit": "s", "direction": "lower", "source": "measured", "method": "m", "n": 1}
OUTSIDE = NAN | {"value": 3.0, "ci_low": 1.0, "ci_high": 2.0}
MEASURE = ("--axis", "pretrain", "--cell", "dense_small")

ARTIFACT_CASES = [
    artifact("no record of a cell", lambda root: None, "normalize", (), RECORD, "dvc repro"),
    artifact("a record that is cut off", write(RECORD, '{"axis": '), "normalize", (), RECORD, "dvc repro"),
    artifact("a record with NaN", record(status="ok", reason=None, model=FACTS, metrics={"average_latency": NAN}), "normalize", (),
             RECORD, "finite", "dvc repro -f"),
    artifact("a record without a metric", record(status="ok", reason=None, model=FACTS), "normalize", (), RECORD, "neither measured nor explained",
             hidden=r"(?<=explained: ).*(?=; measure)"),
    artifact("a record whose value is outside its interval",
             record(status="ok", reason=None, model=FACTS, metrics={"average_latency": OUTSIDE}), "normalize", (),
             RECORD, "outside its interval", "dvc repro -f"),
    artifact("a record of another version", record(schema_version=2), "normalize", (), "schema_version", "dvc repro -f"),
    artifact("a failed record without a reason", record(reason=None), "normalize", (), RECORD, "reason", "dvc repro -f"),
    artifact("hardware.json that is cut off", write("hardware.json", "{"), "measure", MEASURE, "hardware.json", "dvc repro"),
    artifact("hardware.json that describes nothing", write("hardware.json", "{}"), "measure", MEASURE, "hardware.json", "dvc repro"),
    artifact("packed tokens that are cut off", lambda root: (root / "artifacts/data/train.npy").write_bytes(b"\x93NUMPY\x01"), "pretrain",
             ("--architecture", "dense_small"), "train.npy", "run `dvc repro` again", hidden=r"(?<=damaged \().*(?=\))"),
    artifact("a manifest of another version", write("artifacts/data/manifest.json", "{}"), "measure", MEASURE, "manifest.json", "dvc repro"),
    artifact("a prepared tokenizer that is damaged", write("artifacts/base/small/tokenizer.json", "{"), "tune",
             ("--method", "lora", "--size", "small"), "tokenizer", "dvc repro"),
    artifact("a model's weights that are cut off", write("artifacts/pretrain/dense_small/model.safetensors", b"12345678"), "measure",
             MEASURE, "model.safetensors", "dvc repro", hidden=r"(?<=damaged \().*(?=\):)"),
    artifact("a model's config.json that is none", write("artifacts/pretrain/dense_small/config.json", "[]"), "measure",
             MEASURE, "config.json", "EfficientLLM"),
    artifact("a failure.json that is none", write("artifacts/data/failure.json", "[]"), "pretrain",
             ("--architecture", "dense_small"), "failure.json", "delete it"),
]  # fmt: skip


def line(given: str, stage: str, *names: str, code: int = 1) -> Case:
    return Case("Command lines", f"`{given}`", lambda root: None, names, stage, tuple(given.split()[3:]), code=code)


COMMAND_CASES = [
    line("python -m stages.pretrain --architecture mqaa", "pretrain", "'mqaa'", "known: dense_small"),
    line("python -m stages.pretrain --architecture ../../etc", "pretrain", "'../../etc'", "known: dense_small"),
    line("python -m stages.pretrain", "pretrain", "--architecture", code=2),
    line("python -m stages.tune --method lorra --size small", "tune", "--method", "'lorra'", code=2),
    line("python -m stages.tune --method lora", "tune", "--size", code=2),
    line("python -m stages.tune --method dora --size small", "tune", "'dora-small'", "known: lora-small"),
    line("python -m stages.quantize --precision int5 --size small", "quantize", "'int5'", code=2),
    line("python -m stages.quantize --precision int8 --size small", "quantize", "'int8-small'", "known: int4-small"),
    line("python -m stages.measure --axis tune --cell lora-huge", "measure", "'lora-huge'", "known: lora-small"),
    line("python -m stages.measure --axis serve --cell lora-small", "measure", "--axis", "'serve'", code=2),
    line("python -m stages.replicate --architecture mqa --seed 1", "replicate", "'mqa'", "known: dense_small"),
    line("python -m stages.replicate --method lora --seed 1", "replicate", "--size", code=2),
    line("python -m stages.replicate --architecture dense_small --seed one", "replicate", "--seed", "'one'", code=2),
    line("python -m stages.base --size large", "base", "'large'", "known: small"),
    line("python -m stages.probe --fast", "probe", "--fast", code=2),
]

CASES = [*PARAMETER_CASES, *PROFILE_CASES, *DATA_CASES, *BASE_CASES, *ARTIFACT_CASES, *COMMAND_CASES]
