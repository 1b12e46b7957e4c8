"""AdamW with both moments in 8 bits, in blocks with one scale each (Dettmers et al. 2021, arXiv 2110.02861), by bitsandbytes."""

import torch
from bitsandbytes.optim import AdamW8bit


class UnwaitedAdamW8bit(AdamW8bit):
    """Updates one tensor after the other without waiting for the GPU in between, as bitsandbytes' own step does.

    Kernels of one stream run in the order in which they are launched, so the result is the same. A model has hundreds of tensors,
    and a GPU that is waited for after each has nothing to do while the next one's update is on its way.
    """

    initialized: bool

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates all parameters that have gradients."""
        del closure
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for group_index, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.init_state(group, parameter, group_index, index)
                self.update_step(group, parameter, group_index, index)
