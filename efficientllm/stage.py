"""What every stage shares: one-line errors, exit codes, and cells that fail without stopping the others."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from efficientllm import paths, preload, registry
from efficientllm.errors import ArtifactError, CellFailure, EfficientLLMError, Terminated, first_line
from efficientllm.files import (
    UNREADABLE_REMEDY,
    check_directory,
    read_json,
    whole_directory,
    write_checked_json,
    write_json,
)
from efficientllm.input_changes import read_inputs, require_unchanged
from efficientllm.termination import end_with_parent, is_orphan, terminate_by_exception

INTERRUPTED = 130
TERMINATED = 143

_ENVIRONMENT = {
    # threads that spin long for one another slow down tenfold as soon as anything else wants their cores; with a short
    # spin the small models of a CPU run lose nothing on a quiet machine
    "GOMP_SPINCOUNT": "10000",
    # a progress bar for each of a hundred small files hides what matters
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def run_stage(main: Callable[[], int], *, preloaded: bool = False) -> int:
    """Runs a stage's main function and turns its errors into one line and an exit code.

    Args:
        main: The stage; returns its exit code.
        preloaded: Whether to run it in a process forked from one that has the heavy libraries; see `preload`.

    Returns:
        The stage's exit code, 1 after an error that the user can mend, 130 after Ctrl-C, 143 after SIGTERM. Any other
        exception is a defect of the program and keeps its traceback.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # before any library is imported, which is when they are read
    by_dvc = "DVC_STAGE" in os.environ
    if by_dvc:
        end_with_parent()  # or a killed `dvc repro` would leave its stage at work beside the next one's
    module = getattr(sys.modules["__main__"], "__spec__", None)
    try:
        with terminate_by_exception():
            if by_dvc and is_orphan():
                raise Terminated
            inputs = read_inputs() if by_dvc else None
            code = None
            if preloaded and module is not None and preload.available():
                code = preload.run_preloaded(module.name)
            if code is None:
                code = main()
            if code == 0 and inputs is not None:
                require_unchanged(inputs)
            return code
    except EfficientLLMError as error:
        if os.environ.get("EFFICIENTLLM_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        if os.environ.get("EFFICIENTLLM_TRACEBACK"):
            raise
        print("error: out of host memory: end other programs, or use a smaller profile or less data", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except Terminated as stop:
        print(
            f"terminated: {str(stop) or 'no partial output was kept'}; run the same command again to continue",
            file=sys.stderr,
        )
        return TERMINATED


def run_cell(axis: str, cell: str, inputs: list[Path], work: Callable[[], None]) -> int:
    """Runs the work of one cell; a cell that cannot run here leaves its reason in place of its artifact.

    Args:
        axis: The cell's axis.
        cell: The cell's name.
        inputs: Artifact folders that the cell starts from; when one of them holds a failure, it is passed on.
        work: Does the work and writes the cell's artifact.

    Returns:
        0, also for a cell that failed for lack of memory or of a data type: the pipeline goes on without it.
    """
    try:
        with cell_errors():
            for source in inputs:
                if (reason := failure(source)) is not None:
                    raise CellFailure(f"{source} failed: {reason}")
            work()
    except CellFailure as error:
        _record_failure(axis, cell, str(error))
    return 0


@contextlib.contextmanager
def cell_errors() -> Iterator[None]:
    """Turns running out of memory, on the device or the host, into a `CellFailure`."""
    try:
        yield
    except MemoryError as error:
        raise CellFailure("out of host memory") from error
    except RuntimeError as error:
        # torch is not imported here: its out-of-memory error is known by name
        if type(error).__name__ != "OutOfMemoryError" and "DefaultCPUAllocator: can't allocate" not in str(error):
            raise
        raise CellFailure(f"out of memory: {first_line(error)}") from error


def _record_failure(axis: str, cell: str, reason: str) -> None:
    """Writes the reason wherever a later stage looks for the cell's outputs."""
    folders = [paths.artifact(axis, cell)] + ([paths.telemetry(axis, cell)] if axis in registry.TRAINED_AXES else [])
    for output in folders:
        with whole_directory(output) as folder:
            write_json(folder / paths.FAILURE_FILE, {"reason": reason})
    if axis == "base":
        write_checked_json(paths.base_quality(cell), {"reason": reason})
    print(f"{axis}@{cell} failed, and is recorded as failed: {reason}", file=sys.stderr)


def failure(artifact: Path) -> str | None:
    """Returns the reason why an artifact's cell failed, or None where it did not.

    Raises:
        ArtifactError: The artifact is damaged.
    """
    check_directory(artifact)
    path = artifact / paths.FAILURE_FILE
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or "reason" not in content:
        raise ArtifactError(f"{path} says nothing: {UNREADABLE_REMEDY}")
    return str(content["reason"])
