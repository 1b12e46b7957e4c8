"""Stages run through the preloading server: fresh processes, the caller's surroundings, its exit codes and signals."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from efficientllm import preload, preload_server

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are preloaded on Linux only"),
]

STAGE = '''"""A stage that tells where it runs."""
import os, sys, time
from efficientllm.stage import run_stage

def main():
    mode = sys.argv[1]
    print(os.getpid(), os.getcwd(), os.environ.get("COLOUR"), "peft" in sys.modules, flush=True)
    if mode == "sleep":
        open("started", "w").write(str(os.getpid()))
        time.sleep(60)
    if mode == "compute":
        compiler = "torch._inductor.compile_fx" in sys.modules
        import torch
        from efficientllm.measurement.energy import EnergyMeter
        meter = EnergyMeter(torch.device("cuda"))
        with meter.window() as reading:
            for _ in range(200):
                total = torch.compile(lambda x: (x.sin() ** 2 + x.cos() ** 2).sum())(torch.ones(1 << 26, device="cuda"))
            torch.cuda.synchronize()
        print(compiler, float(total) / (1 << 26), reading.joules > 1, reading.fault)
    if mode == "temporary":
        import tempfile
        print(tempfile.gettempdir())
    if mode == "break":
        raise ZeroDivisionError
    return 3 if mode == "code" else 0

if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
'''


AHEAD = """
from efficientllm import preload
from efficientllm.stage import run_stage

def main():
    preload.start_ahead()
    return 0

if __name__ == "__main__":
    raise SystemExit(run_stage(main))
"""


class Client:
    """A folder with one stage, and a server of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "stages").mkdir()
        (root / "stages" / "__init__.py").write_text("")
        (root / "stages" / "tell.py").write_text(STAGE)
        (root / "stages" / "ahead.py").write_text(AHEAD)
        (root / "run").mkdir()
        self.environment = {
            **os.environ, "XDG_RUNTIME_DIR": str(root / "run"), "PYTHONPATH": os.pathsep.join([str(root), str(ROOT), os.environ.get("PYTHONPATH", "")]), "COLOUR": "red",
        }  # fmt: skip
        self.environment.pop(preload.SWITCH, None)

    def command(self, mode: str) -> list[str]:
        return [sys.executable, "-m", "stages.tell", mode]

    def run(self, mode: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(mode),
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def ahead(self, **environment: str) -> None:
        command = [sys.executable, "-m", "stages.ahead"]
        subprocess.run(command, cwd=self.root, env=self.environment | environment, check=True, timeout=20)

    def stop(self) -> None:
        for pid in self.servers():
            os.kill(pid, signal.SIGTERM)

    def servers(self) -> list[int]:
        found = subprocess.run(["pgrep", "-f", f"serve.*{self.root}"], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]

    def start_sleeping(self) -> tuple[subprocess.Popen[str], int]:
        (self.root / "started").unlink(missing_ok=True)
        process = subprocess.Popen(
            self.command("sleep"), cwd=self.root, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not (self.root / "started").exists() or not (self.root / "started").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process, int((self.root / "started").read_text())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    made = Client(tmp_path_factory.mktemp("p"))
    yield made
    made.stop()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_each_run_is_a_fresh_process_with_the_libraries_loaded(client: Client) -> None:
    first, second = client.run("tell"), client.run("tell", COLOUR="blue")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    pids, folders, colours, loaded = zip(*(run.stdout.split() for run in (first, second)), strict=True)
    assert len(set(pids)) == 2
    assert set(folders) == {str(client.root)}
    assert colours == ("red", "blue")
    assert set(loaded) == {"True"}
    assert len(client.servers()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_forked_processes_use_the_gpu_the_compiler_and_the_sensors(client: Client) -> None:
    done = [client.run("compute") for _ in range(2)]
    refused = [path.read_text() for path in (client.root / "run").glob("*/*/refused")]
    assert not refused
    assert len(client.servers()) == 1
    for run in done:
        assert run.stdout.splitlines()[0].endswith(" True"), "PEFT is loaded"
        assert run.stdout.splitlines()[1] == "True 1.0 True None", run.stdout + run.stderr
        assert "importing the libraries here" not in run.stderr


def test_server_started_ahead_serves_those_who_come_later(tmp_path_factory: pytest.TempPathFactory) -> None:
    client = Client(tmp_path_factory.mktemp("a"))  # a short name, or the socket's path is too long
    try:
        for _ in range(2):
            client.ahead()
        socket = next((client.root / "run").glob("*/*")) / "socket"
        assert not socket.exists(), "it does not wait for the server, which imports for seconds"
        assert client.run("tell").returncode == 0
        assert len(client.servers()) == 1
        client.ahead()
        assert len(client.servers()) == 1
    finally:
        client.stop()


def test_nothing_is_started_ahead_where_it_is_turned_off(tmp_path: Path) -> None:
    client = Client(tmp_path)
    client.ahead(EFFICIENTLLM_PRELOAD="0")
    assert not client.servers()


def test_exit_codes_and_errors_come_back(client: Client) -> None:
    assert client.run("code").returncode == 3
    broken = client.run("break")
    assert broken.returncode == 1
    assert "ZeroDivisionError" in broken.stderr


def test_edited_code_takes_effect(client: Client) -> None:
    path = client.root / "stages" / "tell.py"
    path.write_text(STAGE.replace("return 3", "return 4"))
    assert client.run("code").returncode == 4
    path.write_text(STAGE)
    assert len(client.servers()) == 1, "the server need not start again for that"


def test_killed_stage_takes_its_cell_with_it(client: Client) -> None:
    process, cell = client.start_sleeping()
    assert cell != process.pid
    process.kill()
    process.wait()
    assert gone(cell)


def test_interrupt_reaches_the_cell(client: Client) -> None:
    process, cell = client.start_sleeping()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert gone(cell)


def test_can_be_turned_off(client: Client) -> None:
    done = client.run("tell", EFFICIENTLLM_PRELOAD="0")
    assert done.stdout.split()[3] == "False"


@pytest.mark.parametrize(
    "variable", ["OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "NPY_DISABLE_CPU_FEATURES", "XDG_CACHE_HOME"]
)
def test_other_surroundings_get_another_server(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    before = preload._identity()
    assert preload._identity() == before
    monkeypatch.setenv(variable, "7")
    assert preload._identity() != before


def test_a_forked_process_has_the_callers_mask_limits_and_temporary_folder(client: Client, tmp_path: Path) -> None:
    tell = [sys.executable, "-c", "from efficientllm import preload; print(preload._identity())"]
    options = [{}, {"umask": 0o077}, {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))}]
    found = [subprocess.check_output(tell, cwd=client.root, env=client.environment, **each) for each in options]
    assert len(set(found)) == 3
    client.run("tell")  # or the server would be the first to look it up
    assert client.run("temporary", TMPDIR=str(tmp_path)).stdout.splitlines()[1] == str(tmp_path)


FAILING = b'{"module": "stages.tell", "arguments": [], "directory": "/nowhere", "environment": {}}'


@pytest.mark.parametrize(("sent", "length"), [(FAILING[:30], len(FAILING)), (FAILING, len(FAILING))])
def test_a_request_that_breaks_off_or_fails_leaves_the_server_to_others(
    client: Client, sent: bytes, length: int
) -> None:
    assert client.run("tell").returncode == 0
    servers = client.servers()
    places = list((client.root / "run").glob("*/*/socket"))
    for place in places:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(place))
            socket.send_fds(connection, [length.to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(sent)
            if length > len(sent):
                connection.shutdown(socket.SHUT_WR)
            connection.settimeout(10)
            connection.recv(4)
    time.sleep(0.5)
    assert all(place.exists() for place in places)
    assert client.run("tell").stdout.split()[3] == "True"
    assert client.servers() == servers


def test_a_request_that_does_not_come_is_not_awaited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload_server, "_REQUEST_S", 0.1)
    here, there = socket.socketpair()
    with here, there:
        assert preload_server._received(here) == (None, [])


def test_a_server_that_fails_is_not_awaited(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    begun = time.monotonic()
    with pytest.raises(ChildProcessError, match=r"ended with exit code 1, see .*log"):
        preload._reached(tmp_path)
    assert time.monotonic() - begun < 0.5 * preload._READY_S


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").mkdir()
    monkeypatch.setattr(preload, "_folder", lambda: tmp_path)
    assert preload.run_preloaded("stages.tell") is None
    assert "importing the libraries here" in capsys.readouterr().err


def test_a_server_that_ends_before_it_answers_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    here, there = socket.socketpair()
    with here:
        here.sendall(b"never read")
        there.close()  # what is unread then resets the connection
        assert preload._wait(here) == 1
    assert "ended unexpectedly" in capsys.readouterr().err


def test_runtime_folder_too_long_for_a_socket_is_no_obstacle(client: Client) -> None:
    long = client.root / ("x" * 120)
    long.mkdir()
    done = client.run("tell", XDG_RUNTIME_DIR=str(long))
    assert done.returncode == 0, done.stderr


def test_libraries_that_would_initialise_the_gpu_are_found_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from efficientllm.measurement.nvml import NvmlDevice

    class Made:
        initialised = False

        def __init__(self) -> None:
            if self.initialised:
                raise RuntimeError("CUDA was initialised before the fork")
            self.device = torch.device("cuda")

    class Sensor:
        broken = False

        def watts(self) -> float:
            if self.broken:
                raise OSError("NVML was initialised before the fork")
            return 70.0

    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: Made())
    monkeypatch.setattr(NvmlDevice, "of", lambda _: Sensor())
    assert preload_server._forked_process_can_compute()
    monkeypatch.setattr(Sensor, "broken", True)
    assert not preload_server._forked_process_can_compute()
    monkeypatch.setattr(Sensor, "broken", False)
    monkeypatch.setattr(Made, "initialised", True)
    assert not preload_server._forked_process_can_compute()


@pytest.mark.parametrize("triton", [True, False])
def test_kernels_are_compiled_in_parallel_from_the_start(monkeypatch: pytest.MonkeyPatch, triton: bool) -> None:
    from torch._inductor.async_compile import AsyncCompile

    started: list[bool] = []
    monkeypatch.setattr(AsyncCompile, "use_process_pool", lambda: started.append(True))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if triton else None)
    preload_server._start_compiling_processes()
    assert started == [True] * triton
    monkeypatch.delitem(sys.modules, "torch._inductor.async_compile")
    preload_server._start_compiling_processes()
    assert started == [True] * triton


def test_gpu_tells_its_capability_without_being_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    server, told, imported = os.getpid(), [], []

    def capability(index: int) -> tuple[int, int]:
        assert os.getpid() != server, "this process must not ask: it would initialise CUDA"
        return (9, index)

    def import_module(name: str) -> None:
        imported.append(name)
        if name == "peft":  # as bitsandbytes asks, which PEFT imports
            told.extend(torch.cuda.get_device_capability(torch.cuda.device(index)) for index in range(2))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(preload_server.importlib, "import_module", import_module)
    preload_server._import_for_gpu()
    assert told == [(9, 0), (9, 1)]
    assert imported == ["torch._dynamo", "torch._inductor.compile_fx", "peft"]
    assert torch.cuda.get_device_capability is capability


def test_server_whose_imports_have_taken_the_gpu_starts_anew_without_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Replaced(BaseException):
        pass

    def execute(program: str, command: list[str]) -> None:
        raise Replaced(command[-1])

    loaded: list[str] = []
    monkeypatch.setattr(preload_server, "_has_cuda", lambda: True)
    monkeypatch.setattr(preload_server, "_import_for_gpu", lambda: loaded.append("all"))
    monkeypatch.setattr(preload_server, "_detect_hardware", lambda: None)
    monkeypatch.setattr(preload_server, "_why_not_to_fork", lambda: "a forked process cannot use the GPU")
    monkeypatch.setattr(preload_server.os, "execv", execute)
    with pytest.raises(Replaced, match="cautious=True"):
        preload_server.serve(str(tmp_path))
    assert not (tmp_path / "refused").exists()
    preload_server.serve(str(tmp_path), cautious=True)
    assert loaded == ["all"]
    assert (tmp_path / "refused").read_text() == "a forked process cannot use the GPU\n"
