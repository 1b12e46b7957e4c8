"""Measures one cell: quality, a window of training steps, a serving workload; all from its artifact, on this machine."""

import gc
from pathlib import Path
from typing import Any

import torch

from efficientllm import metrics, paths, registry
from efficientllm.bases.base import RANDOM, base_folder
from efficientllm.config import Configuration
from efficientllm.data.manifest import MANIFEST_FILE, read_manifest
from efficientllm.device_lock import claimed
from efficientllm.errors import CellFailure
from efficientllm.evaluation.outcomes import Outcomes
from efficientllm.files import check_directory, content_hash, file_hash
from efficientllm.measurement import subjects
from efficientllm.measurement.compression import compression_values
from efficientllm.measurement.energy import EnergyMeter
from efficientllm.measurement.exclusive import check_exclusive, idle
from efficientllm.measurement.findings import Findings, Laps
from efficientllm.measurement.hardware import read_hardware, sensor_doubt
from efficientllm.measurement.memory import MemoryMeter
from efficientllm.measurement.nvml import NvmlDevice
from efficientllm.measurement.provenance import provenance
from efficientllm.measurement.quality import NO_CHOICES, NoQualityError, held_out_folder, perplexity_values, task_values
from efficientllm.measurement.serving_values import serve
from efficientllm.measurement.training_values import train, training_values
from efficientllm.models.decoder import Decoder
from efficientllm.preload_server import import_on_cpu
from efficientllm.records import Record, write_record
from efficientllm.stage import cell_errors, failure


def measure_cell(configuration: Configuration, axis: registry.Axis, cell: str) -> None:
    """Measures a cell and writes its record; a cell that failed, or fails here, gets a record that says why.

    Args:
        configuration: The run's parameters.
        axis: The cell's axis.
        cell: The cell's name.

    Raises:
        MeasurementError: A figure would be wrong: the device is shared, a sensor is dead.
        ArtifactError: The cell's artifact is missing or damaged.
    """
    artifact = paths.artifact(axis, cell)
    technique, size = subjects.identity(configuration, axis, cell)
    hardware = read_hardware(paths.HARDWARE)
    read_manifest(paths.DATA)  # the evaluation needs it, but comes last
    origin = provenance(
        seed=configuration.parameters.seed,
        profile=configuration.parameters.profile,
        kernels={},
        hashes={
            "data": file_hash(paths.DATA / MANIFEST_FILE),
            "measure": content_hash(configuration.profile.measure.model_dump()),
            **{path.name: file_hash(path) for path in sorted(artifact.glob("*.safetensors"))},
        },
        hardware=hardware,
    )

    def write(kernels: dict[str, str], **outcome: Any) -> None:
        known = origin.model_copy(update={"kernels": kernels})
        record = Record(axis=axis, cell=cell, technique=technique, size=size, provenance=known, **outcome)
        write_record(paths.record(axis, cell), record)

    try:
        with cell_errors():
            if (reason := failure(artifact)) is not None:
                raise CellFailure(f"{artifact}: {reason}")
            for source in subjects.sources(configuration, axis, size):
                check_directory(source)
            with claimed(f"measuring {axis}@{cell}", alone=True) as device:
                findings = _measure(configuration, axis, cell, hardware, device)
    except CellFailure as error:
        write({}, status="failed", reason=str(error))
        print(f"{axis}@{cell} failed, and is recorded as failed: {error}")
        return
    write(
        findings.kernels, status="ok", model=findings.model, metrics=findings.values, missing=findings.missing,
        information=findings.information,
    )  # fmt: skip
    key, energy = metrics.PERFORMANCE[axis], findings.values["energy_per_token"]
    quality = f"{key} {findings.values[key].value:.4g}" if key in findings.values else findings.missing[key]
    print(f"{axis}@{cell}: {quality}; {energy.value:.3g} J/token ({energy.source})")


def _measure(
    configuration: Configuration, axis: registry.Axis, cell: str, hardware: dict[str, Any], device: torch.device
) -> Findings:
    settings, laps = configuration.profile.measure, Laps()
    nvml = NvmlDevice.of(device) if device.type == "cuda" else None
    others = check_exclusive(nvml, allow_shared=settings.allow_shared)
    if device.type == "cpu":
        import_on_cpu()  # hundreds of MiB that would count as memory of those cells that need them, without preloading
    meter = EnergyMeter(device, settings.country_iso_code, nvml=nvml)
    quiet = idle(settings.idle_seconds, meter, allow_shared=settings.allow_shared)
    memory = MemoryMeter(device, nvml)  # last, or on a CPU the meters themselves would be memory of the cell
    information: dict[str, Any] = {
        # of several equal ones a cell takes any that is free, and they differ by some percent
        "card": None if nvml is None else nvml.uuid(),
        "idle_watts": quiet.watts,
        "idle_watts_missing": quiet.missing,
        "shared_allowed": settings.allow_shared,
        "other_processes_on_device": others,
        "others_cores_at_idle": quiet.others_cores,
        "energy_methods": meter.component_methods,
        "energy_sensor_doubt": sensor_doubt(hardware, device),
    }
    laps.end("meters and idle machine")
    trained = None
    if axis != "quantize":
        # first, in a process that holds nothing else yet
        trained = train(configuration, axis, cell, meter, memory, device)
        gc.collect()
        if device.type == "cuda":
            torch.compiler.reset()  # compiled blocks hold on to the trained model
            torch.cuda.empty_cache()
        laps.end("training")
    decoder = subjects.load(configuration, axis, cell, device)
    information["serving_type"] = str(decoder.embed_tokens.weight.dtype).removeprefix("torch.")
    facts = subjects.facts(configuration, axis, cell, decoder, None if trained is None else trained.state)
    kernels = decoder.kernels(device) if trained is None else trained.kernels
    findings = Findings(facts, kernels, information=information, laps=laps)
    if trained is not None:
        training_values(configuration, axis, cell, trained, meter, findings)
    laps.end("loading the model")
    # serving comes before the evaluation, whose large batches leave memory behind in the process
    base = None if axis == "pretrain" else base_folder(subjects.identity(configuration, axis, cell)[1])
    serve(configuration, axis, decoder, held_out_folder(base), meter, memory, findings)
    outcomes = _quality(configuration, axis, base, decoder, device, findings)
    laps.end("evaluation")
    compression_values(configuration, axis, cell, decoder, outcomes, findings)
    laps.end("comparison with the base or bfloat16")
    information["seconds"] = laps.seconds
    return findings


def _quality(
    configuration: Configuration,
    axis: registry.Axis,
    base: Path | None,
    decoder: Decoder,
    device: torch.device,
    findings: Findings,
) -> Outcomes | None:
    """Evaluates the model; one of random weights is not, and one whose loss is no number has no quality."""
    wanted = {entry.key for entry in metrics.measured_metrics(axis)}
    if configuration.profile.random_weights:
        findings.missing |= {key: RANDOM for key in metrics.QUALITY if key in wanted}
        return None
    correct = None
    try:
        values, losses = perplexity_values(configuration, decoder, device, base)
        if base is not None:
            scored, findings.information["task_groups"], correct = task_values(configuration, decoder, device, base)
            values |= scored
            if correct is None:
                findings.missing["task_accuracy"] = NO_CHOICES
    except NoQualityError as error:
        findings.missing |= {key: str(error) for key in metrics.QUALITY if key in wanted}
        return None
    findings.values |= {key: value for key, value in values.items() if key in wanted}
    return Outcomes(losses, correct)
