"""A stage with a fault in it: `python -m tests.faults.struck '{"stage": ..., "kill": ...}'`, in a working copy."""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from efficientllm.stage import run_stage
from tests.faults.cells import STAGES


def kill_at(moment: str, target: str) -> None:
    """Lets SIGKILL strike this process when half of an output is on the disk, or all of it but its name."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "half":
        fsync = os.fsync

        def struck_fsync(handle: int) -> None:
            name = str(Path(f"/proc/self/fd/{handle}").readlink())
            if ".partial" in name and f"{Path(target).parent}/.{Path(target).name}." in name:
                with contextlib.suppress(OSError):  # of a folder, or a file that is only read here
                    os.truncate(handle, os.fstat(handle).st_size // 2)
                die()
            fsync(handle)

        os.fsync = struck_fsync
        return
    replace = Path.replace

    def struck_replace(self: Path, destination: Path) -> Any:
        if str(destination) == target:
            die()
        return replace(self, destination)

    Path.replace = struck_replace  # type: ignore[method-assign]


def limit_memory(mebibytes: int) -> None:
    """Leaves this process that much more address space than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    order = json.loads(sys.argv[1])
    run = importlib.import_module(f"stages.{order['stage']}").main
    if "moment" in order:
        kill_at(order["moment"], order["target"])
    if "mebibytes" in order:
        import torch

        torch.ones(8) @ torch.ones(8)
        limit_memory(order["mebibytes"])
    return int(run([*STAGES[order["stage"]], *order.get("more", [])]))


if __name__ == "__main__":
    raise SystemExit(run_stage(main, preloaded=True))
