"""The description of the machine: the same twice, strict JSON, and words for people."""

import copy
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from efficientllm.measurement import hardware, provenance
from efficientllm.measurement.hardware import describe, probe, sensor_doubt, write_hardware


def test_probe_is_deterministic_and_holds_nothing_volatile(tmp_path: Path) -> None:
    first, second = probe(), probe()
    assert first == second
    write_hardware(tmp_path / "hardware.json", first)
    text = (tmp_path / "hardware.json").read_text()
    assert json.loads(text) == first
    for word in ("time", "host", "pid", "temperature", "clock", "free"):
        assert f'"{word}' not in text
    assert first["cpu"]["allowed_cores"] >= 1
    assert first["ram_limit_gib"] > 0


def test_words_say_what_is_measured_and_what_modelled() -> None:
    machine = {
        "cpu": {
            "model": "A CPU", "allowed_cores": 2.0, "instruction_sets": [],
            "rapl": {"readable": False, "reason": "no permission to read x (Permission denied)"},
        },
        "gpus": [], "ram_limit_gib": 8.0, "software": {"python": "3.11.7", "torch": "2.13.0+cpu", "cuda": None},
        "system": {"platform": "linux", "machine": "x86_64"},
    }  # fmt: skip
    text = "\n".join(describe(machine))
    assert "modelled from the CPU's load, and marked so (no permission" in text
    assert "sudo chmod" in text
    readable = copy.deepcopy(machine)
    readable["cpu"]["rapl"] = {"readable": True, "reason": None}  # type: ignore[index]
    assert "measured: the CPU package, by RAPL" in "\n".join(describe(readable))
    gpu = {
        "name": "NVIDIA H100", "memory_gib": 79.2, "driver": "580.1", "power_limit_w": 700.0, "mig": False,
        "energy_counter": {"works": True, "agrees_with_power": False, "reason": "it differs from integrated power"},
    }  # fmt: skip
    text = "\n".join(describe({**machine, "gpus": [gpu]}))
    assert "DOUBTFUL: it differs from integrated power" in text
    assert "MFU      derived" in text
    doubt = sensor_doubt({"gpus": [gpu]}, torch.device("cuda", 0))
    assert doubt == "the energy counter failed the probe's self-test: it differs from integrated power"
    assert sensor_doubt({"gpus": [gpu]}, torch.device("cpu")) is None
    sliced = "\n".join(describe({**machine, "gpus": [{**gpu, "name": "NVIDIA Unheard-of", "mig": True}]}))
    assert "MIG is on: energy and busy share are those of the whole board" in sliced
    assert "no dense peak is known for this GPU" in sliced
    gpu["energy_counter"] = {"works": True, "agrees_with_power": True, "reason": None}
    assert "measured: NVML's energy counter works" in "\n".join(describe({**machine, "gpus": [gpu]}))


def test_rapl_without_permission_is_told_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_RAPL", tmp_path)
    assert "shows no RAPL counter" in hardware._rapl()["reason"]
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("123456")
    assert hardware._rapl() == {"readable": True, "reason": None}

    def denied(self: Path, **options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    assert "no permission to read" in hardware._rapl()["reason"]


def test_provenance_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert provenance.git_state() == (None, None)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert provenance.git_state() == (None, None), "not a repository"


def test_what_the_pipeline_writes_makes_no_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC's lock files lie beside the definitions of stages, which are code."""
    monkeypatch.chdir(tmp_path)
    files = ["dvc.yaml", "dvc.lock", "stages/tuning/dvc.yaml", "stages/tuning/dvc.lock", "efficientllm/a.py"]
    for name in files:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("1\n")
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *command], check=True)
    for name in files:
        Path(name).write_text("2\n")
        assert provenance.git_state()[1] is (not name.endswith(".lock")), name
        Path(name).write_text("1\n")


def test_provenance_names_versions() -> None:
    found = provenance.provenance(seed=1, profile="cpu", kernels={}, hashes={}, hardware={"cpu": {}})
    assert {"efficientllm", "torch", "codecarbon"} <= set(found.versions)


def test_memory_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = (tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes")
    monkeypatch.setattr(hardware, "_MEMORY_LIMITS", limits)
    machine = hardware._ram_limit()
    limits[0].write_text("max\n")
    assert hardware._ram_limit() == machine
    limits[1].write_text(f"{512 * 1024**2}\n")
    assert hardware._ram_limit() == 512 * 1024**2
