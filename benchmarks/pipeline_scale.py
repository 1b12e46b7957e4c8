"""What DVC itself costs by the number of cells: a first run, a run that finds nothing to do, and the memory of planning.

    python benchmarks/pipeline_scale.py --cells 90,180,500

The project is made for this, in the form of dvc.yaml: `foreach` over a mapping, matrices of two lists, parameters by key out of a
profile, folders of code as dependencies. Its commands write one line, so nearly all of the time is DVC's.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from command_line import new_parser, several, whole

SIZES = ("small", "medium", "large")
CODE_FILES = 60

PIPELINE = """
stages:
  prepare:
    cmd: mkdir -p artifacts && echo data > artifacts/data
    deps:
      - code
    outs:
      - artifacts/data
  train:
    foreach: ${architectures}
    do:
      cmd: mkdir -p artifacts/train && echo ${key} > artifacts/train/${key}
      deps:
        - artifacts/data
        - code
      params:
        - seed
        - architectures.${key}
        - profiles/${profile}.yaml:
            - architectures.${key}
            - training
      outs:
        - artifacts/train/${key}
  measure_train:
    foreach: ${architectures}
    do:
      cmd: mkdir -p artifacts/measure_train && echo ${key} > artifacts/measure_train/${key}
      deps:
        - artifacts/train/${key}
        - code
      params:
        - profiles/${profile}.yaml:
            - measure
      outs:
        - artifacts/measure_train/${key}
  tune:
    matrix:
      method: ${methods}
      size: ${sizes}
    cmd: mkdir -p artifacts/tune && echo ${item.method} > artifacts/tune/${item.method}-${item.size}
    deps:
      - artifacts/train/${item.size}
      - code
    params:
      - seed
      - profiles/${profile}.yaml:
          - methods.${item.method}
          - training
    outs:
      - artifacts/tune/${item.method}-${item.size}
  measure_tune:
    matrix:
      method: ${methods}
      size: ${sizes}
    cmd: mkdir -p artifacts/measure_tune && echo ${item.method} > artifacts/measure_tune/${item.method}-${item.size}
    deps:
      - artifacts/tune/${item.method}-${item.size}
      - code
    params:
      - profiles/${profile}.yaml:
          - measure
    outs:
      - artifacts/measure_tune/${item.method}-${item.size}
  report:
    cmd: ls artifacts/measure_train artifacts/measure_tune > report
    deps:
      - artifacts/measure_train
      - artifacts/measure_tune
    params:
      - architectures
      - methods
      - sizes
    outs:
      - report
"""


@dataclass(frozen=True)
class Run:
    """What one command took.

    Args:
        seconds: Wall time.
        cpu_seconds: CPU time, that of its commands included; hardly depends on what else the machine does.
        peak_mib: Largest resident set of the process.
        stages: Stages that it said it ran.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    stages: int


def make_project(root: Path, cells: int) -> None:
    """Writes a pipeline of about so many cells: a third of them trained and measured, the rest tuned and measured."""
    architectures = [*SIZES, *(f"architecture_{number}" for number in range(max(0, round(cells / 6) - len(SIZES))))]
    methods = [f"method_{number}" for number in range(max(1, round(cells / 9)))]
    (root / "profiles").mkdir()
    (root / "code").mkdir()
    for number in range(CODE_FILES):
        (root / "code" / f"module_{number}.py").write_text(f"VALUE = {number}\n" * 100)
    lines = ["profile: cpu", "seed: 0", "architectures:"]
    lines += [f"  {name}: {{size: medium, mixer: gqa, position: rope}}" for name in architectures]
    lines += ["methods:", *(f"  - {name}" for name in methods), "sizes:", *(f"  - {name}" for name in SIZES)]
    (root / "params.yaml").write_text("\n".join(lines) + "\n")
    lines = ["training: {steps: 1, batch_size: 1}", "measure: {repeats: 1}", "architectures:"]
    lines += [f"  {name}: {{learning_rate: 0.1}}" for name in architectures]
    lines += ["methods:", *(f"  {name}: {{rank: 8}}" for name in methods)]
    (root / "profiles" / "cpu.yaml").write_text("\n".join(lines) + "\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "config", "core.analytics", "false"], cwd=root, check=True)


def measure(root: Path, *arguments: str) -> Run:
    """Runs DVC once.

    Raises:
        RuntimeError: It failed.
    """
    started = time.perf_counter()
    with (root / "log").open("wb") as log:
        command = [sys.executable, "-m", "dvc", *arguments]
        process = subprocess.Popen(command, cwd=root, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # this process' own peak, where getrusage has that of all children
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    printed = (root / "log").read_text(encoding="utf-8")
    if process.returncode:
        raise RuntimeError(f"dvc {' '.join(arguments)} failed:\n{printed[-2000:]}")
    kilobytes = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss / 1024
    return Run(seconds, usage.ru_utime + usage.ru_stime, kilobytes / 1024, printed.count("Running stage"))


def main() -> None:
    """Prints a table, one line per number of cells."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--cells", type=several(whole()), default="90,180,500", help="numbers of cells, each of a project of its own"
    )
    arguments = parser.parse_args()
    print("| cells | first run, s (CPU) | nothing to do, s (CPU) | planning (--dry), s (CPU) | planning, peak MiB |")
    print("|---|---|---|---|---|")
    for cells in arguments.cells:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            make_project(root, cells)
            first = measure(root, "repro")
            again = measure(root, "repro")
            parameters = root / "params.yaml"
            parameters.write_text(parameters.read_text().replace("seed: 0", "seed: 1"))
            planned = measure(root, "repro", "--dry")
            if again.stages or not 0 < planned.stages < first.stages:
                raise RuntimeError(
                    f"{first.stages} stages run, {again.stages} again, {planned.stages} planned for another seed"
                )
            times = " | ".join(f"{run.seconds:.1f} ({run.cpu_seconds:.1f})" for run in (first, again, planned))
            print(f"| {first.stages - 2} | {times} | {planned.peak_mib:.0f} |", flush=True)


if __name__ == "__main__":
    main()
