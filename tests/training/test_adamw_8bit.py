"""The 8-bit optimizer's numbers are those of bitsandbytes' own step, without its waits."""

from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit, optimizer
from torch import nn

from efficientllm.training.adamw_8bit import UnwaitedAdamW8bit

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def trained(kind: type[Any], device: str) -> tuple[list[torch.Tensor], Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(128, 64), (7,), (300, 100)]  # the second is too small for 8 bits
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
    subject = kind([{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:]}], lr=1e-2)
    for step in range(5):
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
            if index == 2 and step in (0, 3):
                parameter.grad = None
        subject.step()
    return [parameter.detach().cpu() for parameter in parameters], subject


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_steps_equal_bitsandbytes_own(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, reference = trained(AdamW8bit, device)
    waits: list[torch.Tensor] = []
    monkeypatch.setattr(optimizer, "sync_gpu", waits.append)
    found, subject = trained(UnwaitedAdamW8bit, device)
    assert not waits
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert [state["step"] for state in subject.state.values()] == [state["step"] for state in reference.state.values()]
