"""A process that has imported the heavy libraries once and forks a fresh process for each cell.

Importing torch, Transformers and PEFT takes one to nine seconds, and a run of the pipeline starts some ninety processes
that need them. On Linux the probe, which comes before them, or else the first of them starts a server that imports the
libraries, and nothing else: it computes nothing and touches no device, and what it has of this package is forgotten in every
forked process, so that edited code takes effect at once. Each cell is a new process, forked from the server: it has its own
memory, its own threads and its own device context, and dies with the stage that asked for it. The server ends by itself when
it has been idle for a while.

A server is used only by processes of the same user, interpreter, package versions, environment variables that matter
to the libraries, CPU affinity, limits and namespaces (see `_identity`). `EFFICIENTLLM_PRELOAD=0` turns it off.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

SWITCH = "EFFICIENTLLM_PRELOAD"
_LONGEST_RUNTIME_FOLDER = 60  # a socket's whole path may have 107 bytes
_READY_S = 60.0
_DISTRIBUTIONS = ("torch", "numpy", "safetensors", "codecarbon", "transformers", "peft", "bitsandbytes")
_PREFIXES = ("OMP_", "GOMP_", "MKL_", "KMP_", "OPENBLAS_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_", "HF_",
             "TRANSFORMERS_", "BNB_", "BITSANDBYTES_", "CODECARBON_", "LD_", "PYTHON", "MALLOC_", "GLIBC_", "ATEN_", "DNNL_",
             "ONEDNN_", "NPY_", "HOME", "XDG_CACHE_HOME")  # fmt: skip
_CODE = (Path(__file__), Path(__file__).with_name("preload_server.py"))
_NAMESPACES = ("net", "mnt", "pid", "user", "cgroup")


def available() -> bool:
    """Says whether stages run through a preloaded process here: on Linux, unless it is turned off.

    A process that torchrun has started is watched by it and must do its work itself.
    """
    return sys.platform == "linux" and os.environ.get(SWITCH, "1") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


def start_ahead() -> None:
    """Starts the server where there is none, and does not wait: it imports while the caller does something else."""
    if not available():
        return
    with contextlib.suppress(OSError):  # a stage that needs it will say so
        connection, _ = _connect_or_start(_folder())
        if connection is not None:
            connection.close()


def run_preloaded(module: str) -> int | None:
    """Runs a module's `__main__` with this process' arguments in a process forked from the server.

    Args:
        module: Name of the module, for example `stages.tune`.

    Returns:
        Its exit code, or None where no server could be had: then the caller does the work itself.
    """
    try:
        connection = _reached(_folder())
        if connection is not None:
            _ask(connection, module)  # a server that gets no whole request forks nothing
    except OSError as error:
        print(f"no preloaded process ({error}): importing the libraries here", file=sys.stderr)
        return None
    if connection is None:
        return None
    with connection:
        return _wait(connection)


def _reached(folder: Path) -> socket.socket | None:
    """Waits for the server, which may have to import first; None where it has refused.

    Raises:
        OSError: It ended, or did not come up in time.
    """
    connection, server = _connect_or_start(folder)
    deadline = time.monotonic() + _READY_S
    while connection is None and not _refused(folder):
        if server is not None and server.poll():
            raise ChildProcessError(f"it ended with exit code {server.returncode}, see {folder / 'log'}")
        if time.monotonic() > deadline:
            raise TimeoutError("none came up in time")
        time.sleep(0.05)
        connection = _connect(folder)
    return connection


def _ask(connection: socket.socket, module: str) -> None:
    request = {
        "module": module,
        "arguments": sys.argv[1:],
        "directory": str(Path.cwd()),
        "environment": dict(os.environ),
    }
    content = json.dumps(request).encode()
    sys.stdout.flush()
    socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(content)


def _wait(connection: socket.socket) -> int:
    """Waits for the exit code; signals that this process gets are passed on to the cell."""

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        with contextlib.suppress(OSError):  # the server is gone, which the answer tells
            connection.sendall(bytes([number]))

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        answer = b""
        while len(answer) < 4:
            try:
                received = connection.recv(4 - len(answer))
            except ConnectionResetError:
                received = b""
            if not received:
                print("the preloaded process ended unexpectedly: run the same command again", file=sys.stderr)
                return 1
            answer += received
        code = int.from_bytes(answer, "big", signed=True)
        if code - 128 in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
            print(f"error: {_how_it_died(code - 128)}: run the same command again to continue", file=sys.stderr)
        return code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _how_it_died(number: int) -> str:
    name = signal.Signals(number).name
    why = ", which the system sends when memory runs out" if number == signal.SIGKILL else ""
    return f"the cell's process was killed by {name}{why}"


def _folder() -> Path:
    """Folder of the server that fits this process, readable by its user alone."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if len(os.fsencode(runtime)) > _LONGEST_RUNTIME_FOLDER:
        runtime = Path("/tmp")
    parent = runtime / f"efficientllm-{os.getuid()}"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = parent.lstat()  # in a folder that all may write, somebody else may have made it, or a link of that name
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{parent} is a link, or belongs to another user")
    parent.chmod(0o700)
    folder = parent / _identity()
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _identity() -> str:
    """Hash of all that a forked process inherits from the server instead of from the stage that asks for it."""
    versions = []
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name}=={importlib.metadata.version(name)}")
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    namespaces = [str(Path(f"/proc/self/ns/{name}").readlink()) for name in _NAMESPACES]
    inherited = {
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _CODE],
        "interpreter": sys.executable,
        "versions": versions,
        "environment": sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(_PREFIXES)),
        "affinity": sorted(os.sched_getaffinity(0)),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")],
        "umask": status.partition("\nUmask:")[2].split()[0],
        "namespaces": namespaces,
        "cgroup": Path("/proc/self/cgroup").read_text(encoding="ascii"),
    }
    return hashlib.sha256(json.dumps(inherited, sort_keys=True).encode()).hexdigest()[:16]


def _refused(folder: Path) -> bool:
    """Whether a server has found that it cannot serve processes like this one."""
    return (folder / "refused").exists()


def _connect_or_start(folder: Path) -> tuple[socket.socket | None, subprocess.Popen[bytes] | None]:
    """Connects to the server; where there is none it is started, unless it refused before, and its process is returned."""
    connection = _connect(folder)
    return connection, _start(folder) if connection is None and not _refused(folder) else None


def _connect(folder: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(folder / "socket"))
    except OSError:
        connection.close()
        return None
    return connection


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """Starts a server in a session of its own, so that Ctrl-C in the terminal reaches the stages and not it."""
    # without the first torch asks the CUDA driver itself whether there is a GPU, and a forked process cannot use it then;
    # without the second its compiler starts helper processes, whose pipes all forked processes would share
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TORCH_WARM_POOL": "0"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", f"from efficientllm.preload_server import serve; serve({str(folder)!r})"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True, env=environment,
        )  # fmt: skip
