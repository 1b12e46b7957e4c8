"""Training in two processes (gloo, on the CPU) against training in one: losses, weights, resuming, faults."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from efficientllm.config.schema import ParallelSettings, Profile
from efficientllm.distributed.launch import WorkerError, train_in_parallel
from efficientllm.errors import CellFailure, ParameterError, Terminated
from tests.distributed import job

pytestmark = pytest.mark.slow


def order(folder: Path, families: list[str], strategy: str = "none", **more: Any) -> dict[str, Any]:
    processes = 1 if strategy == "none" else 2
    return {"folder": str(folder), "families": families, "strategy": strategy, "processes": processes, **more}


def start(ordered: dict[str, Any]) -> None:
    parallel = ParallelSettings(strategy=ordered["strategy"], processes=ordered["processes"])
    profile = Profile.model_construct(random_weights=False, parallel=parallel)
    train_in_parallel(
        profile, job.SETTINGS, "tests.distributed.job", [json.dumps(ordered)], lambda: job.run(ordered)
    )  # fmt: skip


def result(folder: Path, family: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / family / "result.json").read_text())
    return content


def assert_same(found: dict[str, Any], expected: dict[str, Any], family: str) -> None:
    """Losses and norms of the steps that were run, held-out losses, and all weights in the end."""
    steps = {step["step"]: step for step in expected["steps"]}
    for step in found["steps"]:
        assert step["loss"] == pytest.approx(steps[step["step"]]["loss"], abs=1e-5), family
        assert step["norm"] == pytest.approx(steps[step["step"]]["norm"], rel=1e-3), family
    assert found["validation"] == pytest.approx(expected["validation"], abs=1e-4), family
    assert found["weights"].keys() == expected["weights"].keys()
    for name, values in expected["weights"].items():
        assert found["weights"][name] == pytest.approx(values, abs=2e-3), f"{family}: {name}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    start(order(folder, list(job.ROWS)))
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(alone: Path, tmp_path: Path, strategy: str) -> None:
    start(order(tmp_path, list(job.ROWS), strategy))
    for family in job.ROWS:
        found = result(tmp_path, family)
        assert len(found["steps"]) == job.SETTINGS.steps
        assert_same(found, result(alone, family), family)


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_compiled_blocks_train_as_plain_ones(alone: Path, tmp_path: Path, strategy: str) -> None:
    start(order(tmp_path, ["gqa"], strategy, compile="blocks"))
    assert_same(result(tmp_path, "gqa"), result(alone, "gqa"), "gqa")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("first", "second"), [("ddp", "none"), ("none", "fsdp"), ("fsdp", "ddp")])
def test_a_killed_run_goes_on_with_other_processes(alone: Path, tmp_path: Path, first: str, second: str) -> None:
    if first == "none":
        with pytest.raises(CellFailure):
            start(order(tmp_path, ["moe"], first, fails=[0, 4]))
    else:
        with pytest.raises(WorkerError, match="process 1 of 2 was killed by SIGKILL, and the others were stopped"):
            start(order(tmp_path, ["moe"], first, dies=[1, 4]))
    start(order(tmp_path, ["moe"], second))
    found = result(tmp_path, "moe")
    assert found["resumed"] == 1
    assert [step["step"] for step in found["steps"]] == [4, 5]
    assert_same(found, result(alone, "moe"), "moe")


@pytest.mark.exhaustive
def test_two_machines_train_as_one_process_does(alone: Path, tmp_path: Path) -> None:
    """Two launchers, with a process each, that find each other as those of two machines do."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", endpoint, "--rdzv-id", "two", "-m", "tests.distributed.job",
        json.dumps(order(tmp_path, ["moe"], "fsdp")),
    ]  # fmt: skip
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    launchers = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [launcher.wait(300) for launcher in launchers] == [0, 0]
    assert_same(result(tmp_path, "moe"), result(alone, "moe"), "moe")


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_termination_of_one_process_saves_the_run(alone: Path, tmp_path: Path, strategy: str) -> None:
    with pytest.raises(Terminated, match=r"^job is saved at step 4 of 6$"):
        start(order(tmp_path, ["moe"], strategy, terminated=[1, 2]))
    start(order(tmp_path, ["moe"]))
    found = result(tmp_path, "moe")
    assert [step["step"] for step in found["steps"]] == [4, 5]
    assert_same(found, result(alone, "moe"), "moe")


def test_a_failure_of_one_process_is_that_of_the_cell(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CellFailure, match=r"^out of memory: made up$"):
        start(order(tmp_path, ["gqa"], "ddp", fails=[1, 2]))
    assert "Traceback" not in capfd.readouterr().err


def test_processes_have_to_divide_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"training.batch_size is 4, which 3 processes cannot share"):
        start(order(tmp_path, ["gqa"], "ddp") | {"processes": 3})


def test_torchrun_needs_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ParameterError, match=r"parallel.strategy is none: set it to ddp or fsdp"):
        start(order(tmp_path, ["gqa"]))


def test_ddp_averages_gradients_once_a_step(tmp_path: Path) -> None:
    """Of two micro-batches only the last one's backward pass talks to the other processes."""
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    from efficientllm.distributed.strategies import accumulating

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        layer = DistributedDataParallel(torch.nn.Linear(2, 1))
        sent = []

        def hook(_: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
            sent.append(bucket.index())
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        layer.register_comm_hook(None, hook)
        with accumulating(layer):
            layer(torch.ones(1, 2)).sum().backward()
        assert sent == []
        layer(torch.ones(1, 2)).sum().backward()
        assert sent == [0]
        assert layer.module.weight.grad.tolist() == [[2.0, 2.0]]
    finally:
        distributed.destroy_process_group()
    with accumulating(torch.nn.Linear(2, 1)):
        pass  # nothing to keep back
