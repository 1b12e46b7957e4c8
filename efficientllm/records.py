"""The record of a measured cell: the only contract between measuring and everything after it."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from efficientllm import metrics as metric_registry
from efficientllm.config.faults import first_fault
from efficientllm.errors import ArtifactError
from efficientllm.files import read_checked_json, write_checked_json
from efficientllm.registry import Axis, TrainedAxis

SCHEMA_VERSION = 1
_Kind = TypeVar("_Kind", bound=BaseModel)
Source = Literal["measured", "modelled"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Value(_Strict):
    """One number with all that is needed to defend it.

    `repeats` keeps every repeat in the order in which it was taken; `value` is their median unless `method` says
    otherwise. The interval is a 95 % interval that holds the value (Student's t over repeats, a bootstrap over test windows
    and examples, Jeffreys' for a share of examples), null where there is one repeat only. `window_s` is the length of one
    repeat's window in seconds, null where the value has no window.
    """

    value: float
    unit: str
    direction: Literal["lower", "higher"]
    source: Source
    method: str = Field(min_length=1)
    n: int = Field(ge=1)
    repeats: list[float] = []
    ci_low: float | None = None
    ci_high: float | None = None
    coefficient_of_variation: float | None = None
    noisy: bool = False
    window_s: float | None = None

    @model_validator(mode="after")
    def _interval_holds_the_value(self) -> "Value":
        if (self.ci_low is None) != (self.ci_high is None):
            raise ValueError("ci_low and ci_high come together")
        if self.ci_low is None or self.ci_high is None:
            return self
        if self.ci_low > self.ci_high:
            raise ValueError(f"ci_low {self.ci_low} is above ci_high {self.ci_high}")
        if not self.ci_low <= self.value <= self.ci_high:
            raise ValueError(f"{self.value} is outside its interval, ci_low {self.ci_low} to ci_high {self.ci_high}")
        return self


class ModelFacts(_Strict):
    """Structure of the measured model; counts of parameters, bytes and operations.

    `bytes_optimizer` is what the optimizer keeps beside the trained weights; null where the cell is not trained.
    """

    parameters_total: int = Field(ge=1)
    parameters_active: int = Field(ge=1)
    parameters_trainable: int = Field(ge=0)
    bytes_on_disk: int = Field(ge=1)
    bytes_in_memory: int = Field(ge=1)
    cache_bytes_per_token: float | None = Field(default=None, ge=0)
    flops_per_token: float | None = Field(default=None, gt=0)
    bytes_optimizer: int | None = Field(default=None, ge=0)


class Provenance(_Strict):
    """Where a record comes from: seed, profile, software, hardware, inputs, and the kernels that ran."""

    seed: int
    profile: str
    kernels: dict[str, str] = {}
    versions: dict[str, str] = {}
    git_revision: str | None = None
    git_dirty: bool | None = None
    hashes: dict[str, str] = {}
    hardware: dict[str, Any] = {}


class Record(_Strict):
    """What measuring one cell yields, or why it could not be measured.

    Every metric of the cell's axis (`metrics.measured_metrics`) is either in `metrics` or, with its reason, in
    `missing`. `information` holds what is worth keeping but is never ranked: the workload's sizes, idle power, energy by
    component, the training run's own telemetry.
    """

    schema_version: Literal[1] = SCHEMA_VERSION  # type: ignore[assignment]
    axis: Axis
    cell: str = Field(min_length=1)
    technique: str = Field(min_length=1)
    size: str = Field(min_length=1)
    status: Literal["ok", "failed"]
    reason: str | None = None
    model: ModelFacts | None = None
    metrics: dict[str, Value] = {}
    missing: dict[str, str] = {}
    information: dict[str, Any] = {}
    provenance: Provenance

    @model_validator(mode="after")
    def _complete(self) -> "Record":
        if (self.status == "failed") != (self.reason is not None):
            raise ValueError("a failed record has a reason, and only a failed one")
        if self.status == "failed":
            return self
        if self.model is None:
            raise ValueError("a measured record describes its model")
        expected = {entry.key: entry for entry in metric_registry.measured_metrics(self.axis)}
        if both := self.metrics.keys() & self.missing.keys():
            raise ValueError(f"both measured and missing: {', '.join(sorted(both))}")
        if absent := expected.keys() - self.metrics.keys() - self.missing.keys():
            first, *others = sorted(absent)
            raise ValueError(
                f"neither measured nor explained: {first}" + (f", and {len(others)} more" if others else "")
            )
        for key, value in self.metrics.items():
            known = metric_registry.metric(key)
            if (value.unit, value.direction) != (known.unit, known.direction):
                raise ValueError(
                    f"{key} is in {value.unit!r}, {value.direction}: expected {known.unit!r}, {known.direction}"
                )
        return self


class Replica(_Strict):
    """The quality of a cell that was trained again from another seed, or why it could not be."""

    axis: TrainedAxis
    cell: str = Field(min_length=1)
    seed: int
    status: Literal["ok", "failed"]
    reason: str | None = None
    metrics: dict[str, Value] = {}


def write_record(path: Path, record: Record | Replica) -> None:
    """Validates and writes a record as strict JSON with its checksum, atomically."""
    type(record).model_validate(record.model_dump())
    write_checked_json(path, record.model_dump(mode="json"))


def read_record(path: Path) -> Record:
    """Reads a record and checks it against the contract.

    Raises:
        ArtifactError: The file is missing, is not JSON, or breaks the contract; the message names the first fault.
    """
    return _read(path, Record)


def read_replica(path: Path) -> Replica:
    """Reads the quality of a replica and checks it against the contract.

    Raises:
        ArtifactError: The file is missing, is not JSON, or breaks the contract; the message names the first fault.
    """
    return _read(path, Replica)


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    content = read_checked_json(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_fault(error)}; measure the cell again with `dvc repro -f`") from error
