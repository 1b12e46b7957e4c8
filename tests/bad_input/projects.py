"""Small projects to spoil: one cell of each axis, with the real files, prepared data and a model of random weights."""

import contextlib
import importlib
import io
import shutil
from pathlib import Path

from cases import DATA, MODEL, PARAMETERS, PROFILE, Case, edit, good_corpus

from efficientllm.stage import run_stage

ROOT = Path(__file__).parents[2]
_KEPT = {"architectures": ["dense_small"], "methods": ["lora"], "precisions": ["int4"], "sizes": ["small"]}


def plain_project(folder: Path) -> Path:
    """The repository's parameters with one cell of each axis."""
    from ruamel.yaml import YAML

    (folder / "profiles").mkdir(parents=True)
    shutil.copy(ROOT / PARAMETERS, folder)
    shutil.copy(ROOT / PROFILE, folder / PROFILE)
    yaml = YAML(typ="safe")
    content = yaml.load((folder / PARAMETERS).read_text(encoding="utf-8"))
    edit(folder / PARAMETERS, "profile", "smoke")
    edit(folder / PARAMETERS, "architectures", {"dense_small": content["architectures"]["dense_small"]})
    edit(folder / PARAMETERS, "bases", {"small": content["bases"]["small"]})
    for key in ("methods", "precisions", "sizes"):
        edit(folder / PARAMETERS, key, _KEPT[key])
    for key, value in (("architectures", ["dense_small"]), ("methods", ["lora"])):
        edit(folder / PARAMETERS, f"replicas/{key}", value)
    return folder


def make_templates(root: Path) -> dict[str | None, Path]:
    """Makes projects without anything, with prepared data, and with a model, its base and its data."""
    from transformers.utils.logging import disable_progress_bar

    from efficientllm import config, paths
    from efficientllm.bases.base import make_base
    from efficientllm.data.prepare import prepare
    from efficientllm.data.tokenizer import copy_tokenizer
    from efficientllm.files import CHECKSUMS_FILE
    from efficientllm.measurement.hardware import probe, write_hardware
    from efficientllm.models.build import build_decoder, decoder_config
    from efficientllm.models.weights import save_decoder

    disable_progress_bar()  # the lines are compared, and nothing else that is printed
    plain = plain_project(root / "plain")
    data = shutil.copytree(plain, root / "data")
    good_corpus(data)
    with contextlib.chdir(data):
        prepare(config.load(), paths.DATA)
        # by which every spoilt file would be found, whatever is in it; tests/faults is about that
        (paths.DATA / CHECKSUMS_FILE).unlink()
    model = shutil.copytree(data, root / "model")
    with contextlib.chdir(model):
        configuration = config.load()
        source = paths.artifact("pretrain", "dense_small")
        save_decoder(source, build_decoder(decoder_config(*configuration.architecture("dense_small"), 270)))
        copy_tokenizer(paths.DATA, source)
        make_base(configuration, "small")
        (paths.artifact("base", "small") / CHECKSUMS_FILE).unlink()
        write_hardware(paths.HARDWARE, probe())
    return {None: plain, DATA: data, MODEL: model}


def outcome(case: Case, templates: dict[str | None, Path], folder: Path) -> tuple[int, str]:
    """Runs a case in a copy of its template; returns the exit code, and what was printed on both streams."""
    shutil.copytree(templates[case.needs], folder)
    main = importlib.import_module(f"stages.{case.stage}").main
    printed = io.StringIO()
    with contextlib.chdir(folder):
        case.spoil(folder)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                code = run_stage(lambda: main(list(case.arguments)))
            except SystemExit as stop:  # argparse
                code = int(str(stop.code))
    return code, printed.getvalue()
