"""Whether a run's files and parameters are the ones that DVC's lock files describe."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from efficientllm import config, paths, pipeline
from efficientllm.cache import file_md5
from efficientllm.config.faults import first_fault
from efficientllm.config.load import read_yaml
from efficientllm.errors import ArtifactError
from efficientllm.input_changes import value_of
from efficientllm.ranking.results import RANKING_FILE, RESULTS_FILE, SUMMARY_FILE

_REMEDY = "run `dvc repro`, then publish"
_TABLES = tuple(paths.RESULTS / name for name in (RESULTS_FILE, RANKING_FILE, SUMMARY_FILE))


class _Entry(BaseModel):
    path: str
    md5: str | None = None


class _Stage(BaseModel):
    deps: list[_Entry] = []
    outs: list[_Entry] = []
    params: dict[str, dict[str, Any]] = {}


class _Lock(BaseModel):
    stages: dict[str, _Stage] = {}


def check_lock(configuration: config.Configuration, root: Path = Path()) -> dict[str, Any]:
    """Makes sure that the report is the one that DVC's lock files describe, and that the parameters are those that its stages had.

    Args:
        configuration: The run's parameters.
        root: The repository's root.

    Returns:
        What the lock files know of each stage, as DVC wrote it.

    Raises:
        ArtifactError: A lock file is damaged or knows of no finished run, or a file or parameter is another than it says.
    """
    stages, written = _read_stages(root)
    if "report" not in stages or "normalize" not in stages:
        raise ArtifactError(f"{pipeline.lock('report')} knows of no finished run: {_REMEDY}")
    report = stages["report"]
    known = {entry.path: entry.md5 for entry in (*report.outs, *report.deps, *stages["normalize"].outs)}
    for path in (paths.REPORT, paths.HARDWARE, *_TABLES):
        file = root / path
        if not file.is_file() or file_md5(file) != known.get(str(path)):
            raise ArtifactError(f"{path} is not the one that {pipeline.lock('report')} describes: {_REMEDY}")
    _check_parameters(configuration, stages, root)
    return written


def _read_stages(root: Path) -> tuple[dict[str, _Stage], dict[str, Any]]:
    """The stages of all lock files, checked, and as they are written."""
    stages: dict[str, _Stage] = {}
    written: dict[str, Any] = {}
    for lock in pipeline.LOCKS:
        content = read_yaml(root / lock) if (root / lock).is_file() else None
        if content is None:
            continue
        try:
            stages |= _Lock.model_validate(content).stages
        except ValidationError as error:
            # DVC itself does not run beside a lock file that it cannot read
            raise ArtifactError(
                f"{lock} is not as DVC writes it ({first_fault(error)}): restore or delete it, {_REMEDY}"
            ) from error
        written |= content.get("stages", {})
    return stages, written


def _check_parameters(configuration: config.Configuration, stages: dict[str, _Stage], root: Path) -> None:
    profile = (paths.PROFILES / f"{configuration.parameters.profile}.yaml").as_posix()
    current = {name: read_yaml(root / name) for name in (paths.PARAMETERS.as_posix(), profile)}
    declared = _declared(configuration)
    for name, stage in stages.items():
        if "@" in name and name not in declared:
            continue  # DVC keeps what it knows of cells that are no longer declared
        for file, values in stage.params.items():
            if file not in current:
                raise ArtifactError(f"{paths.PARAMETERS}: profile has changed since {name} ran with {file}: {_REMEDY}")
            for key, value in values.items():
                if value_of(current[file], key) != value:
                    raise ArtifactError(f"{file}: {key} has changed since {name} ran: {_REMEDY}")


def _declared(configuration: config.Configuration) -> set[str]:
    """Names of the stages of the run's cells, as the dvc.yaml files make them."""
    names = {f"{kind}{row.axis}@{row.cell}" for row in configuration.rows() for kind in ("", "measure_")}
    names |= {f"base@{size}" for size in configuration.parameters.bases}
    return names | {f"replicate_{axis}@{cell}-{seed}" for axis, cell, seed in configuration.replicas()}
