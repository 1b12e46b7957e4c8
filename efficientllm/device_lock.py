"""Who computes on a device: cells that train share it, a cell that is measured has it for itself.

There is one lock file per device and machine, for all users and working copies, so that workers of `dvc queue start -j 2`
never measure beside other work on one device. The system frees a lock when its process ends, whatever ends it. Of several
equal GPUs a cell takes one that is free, so that there may be a worker for each.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from efficientllm.device import select_device
from efficientllm.distributed import world
from efficientllm.errors import MeasurementError

if TYPE_CHECKING:
    import torch

FOLDER_VARIABLE = "EFFICIENTLLM_LOCKS"
_FOLDER = "/tmp/efficientllm-locks"  # not TMPDIR, which schedulers make anew for each job
_POLL_S = 0.2
_SIGNATURE = re.compile(r"process (\d+) \((.*)\)")
_claims: list[tuple[Path, str]] = []
"""What this process holds, the latest last: lock file and purpose."""


@contextlib.contextmanager
def claimed(purpose: str, *, alone: bool) -> "Iterator[torch.device]":
    """Holds a device while the block runs; waits for it, and says so, where it is taken.

    Args:
        purpose: What is done there, for whoever has to wait for it.
        alone: No other cell may hold the device meanwhile; otherwise just none that wants it alone.

    Yields:
        The device, which is the current one.

    Raises:
        MeasurementError: The folder of the lock files cannot be used.
    """
    candidates = _candidates()
    path, handle = _take(list(candidates), purpose, alone=alone)
    _claims.append((path, purpose))
    try:
        yield _made_current(candidates[path])
    finally:
        _claims.pop()
        os.close(handle)


def others_meanwhile() -> list[str]:
    """Other cells that have held this process' device since it was last free, by their purposes.

    Returns:
        Purposes, in the order in which the cells came; none where this process holds no device. A cell that left before this
        one came may be among them, where a third one held the device all the while.
    """
    if not _claims:
        return []
    path, own = _claims[-1]
    together = world.current() is not None  # then other processes are of this very cell
    lines = list[str]()
    with contextlib.suppress(FileNotFoundError):  # someone has tidied /tmp: then nobody is known
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    signed = [(int(found[1]), found[2]) for line in lines if (found := _SIGNATURE.fullmatch(line))]
    return list(
        dict.fromkeys(purpose for pid, purpose in signed if pid != os.getpid() and not (together and purpose == own))
    )


def _candidates() -> "dict[Path, torch.device]":
    """The devices that would do, by the paths of their lock files: the current one first, then its equals."""
    current, folder = select_device(), _folder()
    if current.type == "cpu":
        return {folder / "the CPU": current}
    import torch

    properties = torch.cuda.get_device_properties
    count = 1 if world.current() is not None else torch.cuda.device_count()  # processes that train together have theirs
    equal = [current] + [
        other
        for index in range(count)
        if (other := torch.device("cuda", index)) != current and properties(other).name == properties(current).name
    ]
    return {folder / f"GPU {str(properties(device).uuid).removeprefix('GPU-')}": device for device in equal}


def _made_current(device: "torch.device") -> "torch.device":
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)
    return device


def _take(paths: list[Path], purpose: str, *, alone: bool) -> tuple[Path, int]:
    """Waits for one of the lock files, and returns it with its handle."""
    said = False
    while True:
        for path in paths:  # one that nobody is at, where there is one
            if (handle := _locked(path, fcntl.LOCK_EX)) is None:
                continue
            os.ftruncate(handle, 0)
            if alone or _try(handle, fcntl.LOCK_SH):
                return path, _signed(handle, purpose)
            os.close(handle)
        for path in paths if not alone else []:
            if (handle := _locked(path, fcntl.LOCK_SH)) is not None:
                return path, _signed(handle, purpose)
        if not said:
            holders = _holders(paths[0]) or ["another process"]
            using = f"{', '.join(holders)} {'is' if len(holders) == 1 else 'are'} using"
            print(f"{purpose} is waiting for {paths[0].name}, which {using}", flush=True)
            said = True
        time.sleep(_POLL_S)


def _locked(path: Path, kind: int) -> int | None:
    """Opens a lock file and locks it, if that can be done at once."""
    try:
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
        except FileNotFoundError:  # apart, since systems refuse O_CREAT for other users' files in shared folders
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CREAT, 0o666)
            os.fchmod(handle, 0o666)
    except OSError as error:
        raise _unusable(path, error) from error
    if _try(handle, kind):
        return handle
    os.close(handle)
    return None


def _try(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signed(handle: int, purpose: str) -> int:
    os.write(handle, f"process {os.getpid()} ({purpose})\n".encode())
    return handle


def _holders(path: Path) -> list[str]:
    """Who else has signed and still runs."""
    with contextlib.suppress(FileNotFoundError):
        signed = dict.fromkeys(path.read_text(encoding="utf-8", errors="replace").splitlines())
        return [line for line in signed if (found := _SIGNATURE.fullmatch(line)) and _runs(int(found[1]))]
    return []


def _runs(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _folder() -> Path:
    folder = Path(os.environ.get(FOLDER_VARIABLE, _FOLDER))
    try:
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    except FileExistsError:
        pass
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder


def _unusable(path: Path, error: OSError) -> MeasurementError:
    return MeasurementError(
        f"cannot use the lock file of a device, {path} ({error.strerror}): set {FOLDER_VARIABLE} to a folder that every "
        "user can write"
    )
