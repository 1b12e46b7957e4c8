"""The server of `preload`: it has the heavy libraries, and forks a process for each cell that asks for one."""

import contextlib
import fcntl
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from efficientllm.preload import SWITCH

_IDLE_S = 120.0
_THREADS_END_S = 5.0
_REQUEST_S = 5.0
"""How long a request may take to arrive; nobody else is served meanwhile."""
_LIBRARIES = (
    "torch",
    "numpy",
    "safetensors.torch",
    "codecarbon",
    "transformers",
    "transformers.modeling_utils",
)
_COMPILER = ("torch._dynamo", "torch._inductor.compile_fx")
"""What training on a GPU needs besides; on a CPU bitsandbytes has imported it."""


def import_on_cpu() -> None:
    """Imports all that cells on a CPU would import at first use; PEFT brings bitsandbytes and the compiler."""
    for name in (*_LIBRARIES, "peft"):
        importlib.import_module(name)


def serve(folder: str, *, cautious: bool = False) -> None:
    """Imports the libraries, then forks a process for each request until none has come for two minutes.

    Args:
        folder: Of the server's socket, lock and log.
        cautious: On a GPU, leave out what might initialise CUDA, after which no forked process could use it. A server begins
            with everything, tries a forked process, and where that fails starts anew with this.
    """
    place = Path(folder)
    with (place / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another server is there, or coming up
        for name in _LIBRARIES:
            importlib.import_module(name)
        if not _has_cuda():
            import_on_cpu()
        elif not cautious:
            _import_for_gpu()
        _detect_hardware()
        if (reason := _why_not_to_fork()) is not None:
            if _has_cuda() and not cautious:
                again = f"from efficientllm.preload_server import serve; serve({folder!r}, cautious=True)"
                os.execv(sys.executable, [sys.executable, "-c", again])
            (place / "refused").write_text(reason + "\n", encoding="utf-8")
            return
        path = place / "socket"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            try:
                _Server(listener).run()
            finally:
                path.unlink(missing_ok=True)


def _why_not_to_fork() -> str | None:
    """Waits for the threads that an import or the detection left behind: a process with threads must not fork."""
    deadline = time.monotonic() + _THREADS_END_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    if threading.active_count() > 1:
        return f"threads do not end: {', '.join(thread.name for thread in threading.enumerate()[1:])}"
    if not _forked_process_can_compute():
        return "a forked process cannot use the GPU or its sensors"
    return None


def _detect_hardware() -> None:
    """Lets CodeCarbon find out what machine this is, which takes seconds; forked processes inherit what it found.

    With a GPU it would open NVML, which does not survive a fork: there it finds out about the processor alone.
    """
    from efficientllm.measurement.energy import offline_tracker, silence_codecarbon

    if Path("/proc/driver/nvidia").exists():
        from codecarbon.core import cpu, hardware_cache

        silence_codecarbon()
        hardware_cache.get_cached_tdp(cpu)
        return
    tracker = offline_tracker("USA")
    tracker.start_task("detect")
    tracker.stop_task("detect")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()  # asks NVML and leaves CUDA alone, see `_start`


def _import_for_gpu() -> None:
    """Imports the compiler and PEFT; PEFT imports bitsandbytes, which is told what it would initialise CUDA to learn."""
    import torch

    for name in _COMPILER:
        importlib.import_module(name)
    capabilities, ask = _compute_capabilities(), torch.cuda.get_device_capability

    def known(device: Any = None) -> tuple[int, int]:
        return capabilities[getattr(device, "idx", device) or 0]

    torch.cuda.get_device_capability = known
    try:
        importlib.import_module("peft")
    finally:
        torch.cuda.get_device_capability = ask


def _start_compiling_processes() -> None:
    """Starts the processes in which torch.compile compiles kernels at once, while the stage loads its model.

    They take seconds to come up, and until then kernels are compiled one by one. Without Triton, as on a CPU, there are none.
    """
    compiler = sys.modules.get("torch._inductor.async_compile")
    if compiler is not None and importlib.util.find_spec("triton") is not None:
        compiler.AsyncCompile.use_process_pool()  # as a compilation does; it answers whether they are up, and starts them


def _compute_capabilities() -> list[tuple[int, int]]:
    """Compute capability of each GPU, found out in a forked process, for the question initialises CUDA."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            import torch

            found = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
            os.write(writing, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return [(major, minor) for major, minor in json.loads(answer or "[]")]


def _forked_process_can_compute() -> bool:
    """Tries a forked process on the GPU and its sensors: had an import initialised CUDA here, none of them could use it."""
    if not _has_cuda():
        return True
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            import torch

            from efficientllm.measurement.nvml import NvmlDevice

            ones = torch.ones(64, 64, device="cuda", dtype=torch.float16)
            if (bitsandbytes := sys.modules.get("bitsandbytes")) is not None:
                restored = bitsandbytes.functional.dequantize_4bit(*bitsandbytes.functional.quantize_4bit(ones))
                assert torch.equal(restored, ones)
            NvmlDevice.of(ones.device).watts()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class _Server:
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._children: dict[int, tuple[socket.socket, int]] = {}  # pidfd: (connection, pid)

    def run(self) -> None:
        while True:
            events = self._selector.select(timeout=None if self._children else _IDLE_S)
            if not events:
                return
            for key, _ in events:
                if key.fileobj is self._listener:
                    self._fork()
                elif isinstance(key.fileobj, socket.socket):
                    self._pass_signal(key.fileobj)
                else:
                    self._reap(int(key.fd))

    def _fork(self) -> None:
        connection, _ = self._listener.accept()
        content, descriptors = _received(connection)
        pid = os.fork() if content is not None else -1
        if pid == 0:
            try:
                self._listener.close()
                _become(json.loads(content or b""), descriptors)
            except BaseException:  # noqa: BLE001 - going on here it would be a second server, which removes the socket as it ends
                traceback.print_exc()
            finally:
                os._exit(1)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid < 0:
            connection.close()
            return
        handle = os.pidfd_open(pid)
        self._children[handle] = (connection, pid)
        self._selector.register(handle, selectors.EVENT_READ)
        self._selector.register(connection, selectors.EVENT_READ, data=pid)

    def _pass_signal(self, connection: socket.socket) -> None:
        """Passes a signal on; a stage that is gone (kill -9) takes its cell with it."""
        pid = next(pid for other, pid in self._children.values() if other is connection)
        try:
            received = connection.recv(1)
        except OSError:
            received = b""
        if not received:
            self._selector.unregister(connection)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, received[0] if received else signal.SIGKILL)

    def _reap(self, handle: int) -> None:
        connection, pid = self._children.pop(handle)
        _, status = os.waitpid(pid, 0)
        self._selector.unregister(handle)
        os.close(handle)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        code = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(OSError):
            connection.sendall((128 - code if code < 0 else code).to_bytes(4, "big", signed=True))
        connection.close()


def _received(connection: socket.socket) -> tuple[bytes | None, list[int]]:
    """A request and its three streams; None where whoever asks has ended, or stopped, before all of it was sent."""
    connection.settimeout(_REQUEST_S)
    content, length, descriptors = b"", 0, list[int]()
    with contextlib.suppress(OSError):
        header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
        length = int.from_bytes(header, "big") if len(header) == 8 else 0
        while len(content) < length and (received := connection.recv(1 << 16)):
            content += received
    connection.settimeout(None)
    whole = len(descriptors) == 3 and len(content) == length > 0
    return content if whole else None, descriptors


def _become(request: dict[str, object], descriptors: list[int]) -> None:
    """Turns the forked process into the stage that was asked for; does not return."""
    import runpy

    os.setsid()
    # whoever started the server may have had it ignore them, as shells do for what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(str(request["directory"]))
    environment = {str(name): str(value) for name, value in dict(request["environment"]).items()}  # type: ignore[call-overload]
    os.environ.clear()
    os.environ.update(environment | {SWITCH: "0"})
    tempfile.tempdir = None  # which the server has looked up in its own environment
    arguments = [str(argument) for argument in request["arguments"]]  # type: ignore[attr-defined]
    sys.argv = [str(request["module"]), *arguments]
    sys.path[0] = str(request["directory"])
    sys.stdin = os.fdopen(0, "r")
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    for name in [name for name in sys.modules if name.split(".")[0] in ("efficientllm", "stages")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    # the parent is the server, whose end nobody could tell the stage
    importlib.import_module("efficientllm.termination").end_with_parent()
    _start_compiling_processes()
    code = 1
    try:
        runpy.run_module(str(request["module"]), run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - the forked process must end here, whatever happened
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
