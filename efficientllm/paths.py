"""Where every artifact lies, relative to the repository's root, which is the working directory of every stage."""

from pathlib import Path

PARAMETERS = Path("params.yaml")
PROFILES = Path("profiles")
HARDWARE = Path("hardware.json")
ARTIFACTS = Path("artifacts")
CHECKED = ARTIFACTS / "parameters-checked.json"
DATA = ARTIFACTS / "data"
PRETRAIN = ARTIFACTS / "pretrain"
MEASURE = ARTIFACTS / "measure"
TELEMETRY = ARTIFACTS / "telemetry"
CHECKPOINTS = Path(".checkpoints")
RESULTS = Path("results")
REPORT = Path("reports") / "index.html"
PUBLISHED = Path("reports") / "published"

FAILURE_FILE = "failure.json"


def artifact(axis: str, cell: str) -> Path:
    """Folder of a trained or quantized cell, for example `artifacts/tune/lora-small`."""
    return ARTIFACTS / axis / cell


def base_quality(size: str) -> Path:
    """Quality of the untuned base of a size; apart from the base, which does not depend on how it is evaluated."""
    return ARTIFACTS / "base-quality" / f"{size}.json"


def telemetry(axis: str, cell: str) -> Path:
    """Folder of a training run's curves and whole-run figures; volatile, so no later stage trains or measures from it."""
    return TELEMETRY / axis / cell


def record(axis: str, cell: str) -> Path:
    """The measured record of a cell."""
    return MEASURE / axis / f"{cell}.json"


def replica(axis: str, cell: str, seed: int) -> Path:
    """Quality of a cell that was trained again from another seed."""
    return MEASURE / "replicas" / axis / f"{cell}-{seed}.json"


def evaluation(key: str) -> Path:
    """What an evaluation gave that need not be done again; outside DVC's outputs as checkpoints are."""
    return CHECKPOINTS / "evaluations" / f"{key}.json"


def checkpoint(axis: str, cell: str) -> Path:
    """Folder of the checkpoint that a killed run resumes from; outside DVC's outputs, which DVC deletes before a run."""
    return CHECKPOINTS / axis / cell


def copied_project_hint() -> str:
    """What to add to an error about a missing file in a queued experiment, which has of the project what Git has."""
    if "/.dvc/tmp/exps/" not in f"{Path.cwd().as_posix()}/":
        return ""
    return "; an experiment that is queued has no other files than Git: add --copy-paths to `dvc exp run`"
