"""Whether the energy meter tells the truth where the truth is known.

    python benchmarks/energy_agreement.py --seconds 30

1. A window around three seconds of sleep is three seconds long within 2 %, and its power is that of the idle machine.
2. Twice the work takes twice the energy within 10 %.
3. Over a long window CodeCarbon's joules agree with NVML's counter within 5 %, and the counter with the integral of the
   board's power within 10 %.
4. Windows of two seconds of the same work repeat within 2 % (coefficient of variation of their watts); beside them windows
   that do not wait for moves of the energy counter, by turns.

Without a GPU the first two hold what CodeCarbon reads by RAPL or, where there is none, models from the CPU's load: then
they say that the arithmetic is right, not that the watts are. The exit code is 1 where a check fails.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable

import torch
from command_line import new_parser, positive, whole

from efficientllm.device import select_device, synchronize
from efficientllm.measurement.energy import COUNTER_TOLERANCE, EnergyMeter, EnergyReading
from efficientllm.measurement.nvml import NvmlDevice
from efficientllm.measurement.sampling import Samples, sampled
from efficientllm.measurement.selftest import TOLERANCE

_SLEEP_S = 3.0
_WINDOW_S = 2.0


class Checks:
    """Prints each check as it is made, and remembers whether one failed."""

    def __init__(self) -> None:
        self.failed = False

    def add(self, name: str, text: str, holds: bool) -> None:
        """Prints one check."""
        self.failed |= not holds
        print(f"{'ok  ' if holds else 'FAIL'} {name}: {text}", flush=True)


def main() -> int:
    """Makes the checks that apply here."""
    parser = new_parser(__doc__)
    parser.add_argument("--seconds", type=positive, default=30.0, help="length of the long window")
    parser.add_argument("--pairs", type=whole(), default=3, help="pairs of the work and twice the work")
    parser.add_argument(
        "--windows", type=whole(2), default=8, help="windows of each kind that are held against each other, on a GPU"
    )
    arguments = parser.parse_args()
    device = select_device()
    meter, checks = EnergyMeter(device), Checks()
    print(f"{meter.device_name}: {meter.source.upper()}, {meter.method}; load average {os.getloadavg()[0]:.2f}")
    _asleep(meter, checks)
    call = _work(device)
    _warmed_up(call, device)
    _twice(meter, call, device, arguments.seconds / 6, arguments.pairs, checks)
    _long(meter, call, device, arguments.seconds, checks)
    if meter.nvml is not None:
        _repeated(meter, call, device, arguments.windows, checks)
    return int(checks.failed)


def _asleep(meter: EnergyMeter, checks: Checks) -> None:
    readings = []
    for _ in range(3):
        with meter.window() as reading:
            time.sleep(_SLEEP_S)
        readings.append(reading)
    seconds = [reading.seconds for reading in readings]
    watts = [reading.watts for reading in readings]
    off = max(abs(value / _SLEEP_S - 1) for value in seconds)
    checks.add(
        "sleep", f"{', '.join(f'{value:.3f}' for value in seconds)} s for 3 s (furthest off {off:.1%})", off <= 0.02
    )
    spread = max(watts) / min(watts) - 1
    print(f"     idle power: {', '.join(f'{value:.1f}' for value in watts)} W ({meter.source}; spread {spread:.1%})")


def _work(device: torch.device) -> Callable[[], None]:
    """Some milliseconds of matrix products."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    matrix = torch.randn(size, size, device=device, dtype=dtype)

    def call() -> None:
        torch.mm(matrix, matrix)

    return call


def _warmed_up(call: Callable[[], None], device: torch.device) -> None:
    end = time.perf_counter() + 3
    while time.perf_counter() < end:
        call()
        synchronize(device)


def _calls(call: Callable[[], None], number: int, device: torch.device) -> None:
    for index in range(number):
        call()
        if index % 20 == 0:
            synchronize(device)
    synchronize(device)


def _twice(
    meter: EnergyMeter, call: Callable[[], None], device: torch.device, seconds: float, pairs: int, checks: Checks
) -> None:
    started = time.perf_counter()
    _calls(call, 200, device)
    number = max(1, int(200 * seconds / (time.perf_counter() - started)))
    ratios, times = [], []
    for _ in range(pairs):
        readings = []
        for factor in (1, 2):
            with meter.window() as reading:
                _calls(call, factor * number, device)
            readings.append(reading)
        ratios.append(readings[1].joules / readings[0].joules)
        times.append(readings[1].seconds / readings[0].seconds)
    ratio = statistics.median(ratios)
    checks.add(
        "twice the work",
        f"{ratio:.3f} times the energy in {statistics.median(times):.3f} times the time ({number} calls; ratios "
        f"{', '.join(f'{value:.3f}' for value in ratios)})",
        abs(ratio / 2 - 1) <= 0.10,
    )


def _long(meter: EnergyMeter, call: Callable[[], None], device: torch.device, seconds: float, checks: Checks) -> None:
    reading, samples = _long_window(meter, call, device, seconds)
    parts = ", ".join(
        f"{part} {joules:.1f} J ({meter.component_methods[part]})" for part, joules in reading.components.items()
    )
    print(f"     {reading.seconds:.2f} s of matrix products: {reading.watts:.1f} W {meter.source}; {parts}")
    if meter.nvml is None:
        print("     no GPU: no second sensor to compare with")
        return
    if reading.counter_joules is None:
        checks.add("counter", str(reading.fault or meter.nvml.counter_fault()), holds=False)
        return
    difference = reading.joules / reading.counter_joules - 1
    checks.add(
        "CodeCarbon against NVML's counter",
        f"{reading.joules:.1f} J against {reading.counter_joules:.1f} J ({difference:+.2%})",
        abs(difference) <= COUNTER_TOLERANCE,
    )
    assert samples is not None
    integral = samples.mean * reading.seconds
    difference = reading.counter_joules / integral - 1
    checks.add(
        "NVML's counter against integrated power",
        f"{reading.counter_joules:.1f} J against {integral:.1f} J of {samples.count} samples ({difference:+.2%})",
        abs(difference) <= TOLERANCE,
    )


def _long_window(
    meter: EnergyMeter, call: Callable[[], None], device: torch.device, seconds: float
) -> tuple[EnergyReading, Samples | None]:
    with meter.window() as reading, _power(meter.nvml) as samples:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            _calls(call, 20, device)
    return reading, samples


def _repeated(meter: EnergyMeter, call: Callable[[], None], device: torch.device, windows: int, checks: Checks) -> None:
    watts: dict[bool, list[float]] = {True: [], False: []}
    for index in range(windows):
        time.sleep(0.037 * index % 0.09)  # another phase of the counter each time
        for aligned, found in watts.items():
            with meter.window(aligned=aligned) as reading:
                end = time.perf_counter() + _WINDOW_S
                while time.perf_counter() < end:
                    _calls(call, 20, device)
            found.append(reading.watts)
    spread = {aligned: statistics.stdev(found) / statistics.mean(found) for aligned, found in watts.items()}
    checks.add(
        "repeated windows",
        f"{statistics.mean(watts[True]):.1f} W, varying by {spread[True]:.2%} in {windows} windows of {_WINDOW_S:g} s (without "
        f"waiting for the counter {statistics.mean(watts[False]):.1f} W and {spread[False]:.2%})",
        spread[True] <= 0.02,
    )


def _power(nvml: NvmlDevice | None) -> contextlib.AbstractContextManager[Samples | None]:
    return contextlib.nullcontext() if nvml is None else sampled("the board's power", nvml.watts, 0.05)


if __name__ == "__main__":
    raise SystemExit(main())
