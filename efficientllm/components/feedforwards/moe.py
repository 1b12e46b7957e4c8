"""Sparse mixture of SwiGLU experts, as in Mixtral (Jiang et al. 2024, arXiv 2401.04088, section 2.1).

Each token goes to the `experts_per_token` experts with the highest router scores; their outputs are summed with the
softmax over those scores. No token is dropped: tokens are sorted by expert, and each expert multiplies one contiguous
slice: all slices in one grouped matrix product, whose offsets stay on the device, or where that cannot run in a loop,
which on a GPU waits for their lengths.

The experts' weights are stacked tensors, not `nn.Linear`. So bitsandbytes, which replaces linear layers alone, would
leave them in 16 bits, and PEFT's "all-linear" would adapt attention alone; PEFT reaches stacked weights by
`target_parameters`.
"""

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from efficientllm.config.schema import Section
from efficientllm.distributed.world import current
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Feedforward, LayerState, Span


class MixtureOptions(Section):
    """Parameters of the mixture: its experts, how many serve a token, and the weight of the balancing loss."""

    experts: int = Field(ge=2)
    experts_per_token: int = Field(ge=1)
    load_balancing_weight: float = Field(ge=0)

    @model_validator(mode="after")
    def _enough_experts(self) -> "MixtureOptions":
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} exceeds experts {self.experts}")
        return self


def load_balancing_loss(
    probabilities_ne: torch.Tensor, chosen_nk: torch.Tensor, real_n: torch.Tensor | None = None
) -> torch.Tensor:
    """Switch's balancing loss of one layer (Fedus et al. 2021, arXiv 2101.03961, equation 4), for top-k as in Mixtral.

    Args:
        probabilities_ne: Softmax over all router scores `[N, E]`.
        chosen_nk: Chosen experts `[N, k]`.
        real_n: True where a token counts `[N]`; None where all do.

    Returns:
        E * sum_e f_e P_e, where f_e is the mean number of a token's choices that fall on expert e and P_e the mean
        probability of e; k where the load is even.
    """
    experts = probabilities_ne.shape[1]
    numbers = torch.arange(experts, device=chosen_nk.device)
    choices_ne = (chosen_nk.unsqueeze(-1) == numbers).sum(dim=1).to(probabilities_ne.dtype)
    if real_n is None:
        load_e, world = choices_ne.mean(dim=0), current()
        if world is not None:
            load_e = world.mean(load_e)  # the whole batch's, or the mean of the processes' losses would be another loss
        return experts * (load_e * probabilities_ne.mean(dim=0)).sum()
    # weights rather than a selection, whose length a GPU would have to tell
    share_n1 = (real_n / real_n.sum()).unsqueeze(-1)
    return experts * ((share_n1 * choices_ne).sum(dim=0) * (share_n1 * probabilities_ne).sum(dim=0)).sum()


def _has_grouped_kernel(device: torch.device) -> bool:
    """Whether PyTorch brings a kernel for groups of matrices on this GPU: from Hopper on, consumer cards left out."""
    return torch.cuda.get_device_properties(device).major in (9, 10)


# what torch.compiler.assume_constant_result does, which imports the compiler to do it: a second of every process' start
_has_grouped_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Rearrange(torch.autograd.Function):
    """x[order], whose gradient gathers by the inverse permutation where autograd would scatter."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor):  # type: ignore[no-untyped-def]
        (inverse,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient.index_select(0, inverse), None, None


class _Dispatch(torch.autograd.Function):
    """Copies each token to its k places in the sorted order; the gradient sums the k copies."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        order: torch.Tensor,
        inverse: torch.Tensor,
        copies: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies  # type: ignore[attr-defined]
        return x.index_select(0, order // copies)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor):  # type: ignore[no-untyped-def]
        (inverse,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gathered = gradient.index_select(0, inverse)
        return gathered.view(-1, ctx.copies, gradient.shape[-1]).sum(dim=1), None, None, None  # type: ignore[attr-defined]


class MixtureOfExperts(Feedforward):
    """Top-k routed SwiGLU experts; 6 k C I + 2 C E FLOPs per token."""

    Options = MixtureOptions
    reference_kernel = "loop over experts"
    fast_kernel = "grouped matrix multiplication"
    balances_experts = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        experts, width, inner = self.options.experts, config.hidden_size, config.intermediate_size
        self.width, self.inner = width, inner
        self.router = nn.Parameter(torch.empty(experts, width))
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

    def fast_obstacle(self, device: torch.device) -> str | None:
        """Says where PyTorch's grouped product is no single kernel but itself a loop, which waits for the offsets.

        The type that counts is the one computed in: autocast's, where it is on.
        """
        if device.type != "cuda":
            return "has kernels for GPUs alone; elsewhere PyTorch loops over experts too"
        if not _has_grouped_kernel(device):
            return "needs a GPU of compute capability 9 or 10"
        dtype = self._compute_type(device)
        if dtype != torch.bfloat16:
            return f"needs bfloat16, not {str(dtype).removeprefix('torch.')}"
        if self.width % 8 or self.inner % 8:  # rows have to start at multiples of 16 bytes
            return "needs hidden_size and intermediate_size to be multiples of 8"
        return None

    def _compute_type(self, device: torch.device) -> torch.dtype:
        """The type of matrix products; spelled out because autocast does not know the grouped one."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.router.dtype

    def forward(
        self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transforms each token; in training mode also returns the weighted balancing loss, padding left out."""
        del state
        x_nc = hidden_btc.reshape(-1, hidden_btc.shape[-1])
        copies = self.options.experts_per_token
        # scores in float32, for the choice between near equals decides more than its rounding
        with torch.autocast(x_nc.device.type, enabled=False):
            scores_ne = F.linear(x_nc.float(), self.router.float())
        top_nk, chosen_nk = scores_ne.topk(copies, dim=-1)
        weights_nk = top_nk.softmax(dim=-1).to(x_nc.dtype)
        sorted_experts, order = chosen_nk.flatten().sort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        numbers = torch.arange(self.options.experts, device=order.device)
        ends_e = torch.searchsorted(sorted_experts, numbers, right=True, out_int32=True)
        if self.runs_fast(x_nc.device):
            # cast before the copies are made: they are half as wide
            sorted_nc = _Dispatch.apply(x_nc.to(self._compute_type(x_nc.device)), order, inverse, copies)
            sorted_out = self._all_experts(sorted_nc, ends_e)
        else:
            sorted_out = self._each_expert(_Dispatch.apply(x_nc, order, inverse, copies), ends_e)
        out_nkc = _Rearrange.apply(sorted_out, inverse, order).view(-1, copies, x_nc.shape[-1])
        out_nc = (out_nkc * weights_nk.unsqueeze(-1)).sum(dim=1)
        loss = None
        if self.training:
            real_n = None if span.balanced_bt is None else span.balanced_bt.flatten()
            balance = load_balancing_loss(scores_ne.softmax(dim=-1), chosen_nk, real_n)
            loss = self.options.load_balancing_weight * balance
        return out_nc.view_as(hidden_btc), loss

    def _all_experts(self, sorted_nc: torch.Tensor, ends_e: torch.Tensor) -> torch.Tensor:
        """Runs all experts at once, each on the slice of the sorted tokens that ends at its offset."""
        gate_up_weight = self.gate_up_proj.to(sorted_nc.dtype).transpose(1, 2)
        down_weight = self.down_proj.to(sorted_nc.dtype).transpose(1, 2)
        gate, up = F.grouped_mm(sorted_nc, gate_up_weight, offs=ends_e).chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, down_weight, offs=ends_e)

    def _each_expert(self, sorted_nc: torch.Tensor, ends_e: torch.Tensor) -> torch.Tensor:
        """Runs expert after expert, each on its contiguous slice of the sorted tokens."""
        outputs, counts = [], ends_e.diff(prepend=ends_e.new_zeros(1)).tolist()
        # unbound at once: indexing expert by expert would write a full-size gradient for each
        experts = zip(sorted_nc.split(counts), self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True)
        for slice_nc, gate_up_weight, down_weight in experts:
            if len(slice_nc):
                gate, up = F.linear(slice_nc, gate_up_weight).chunk(2, dim=-1)
                outputs.append(F.linear(F.silu(gate) * up, down_weight))
        return torch.cat(outputs)

    def residual_projections(self) -> list[torch.Tensor]:
        """Lists the experts' down projections."""
        return [self.down_proj]

    def active_parameters(self) -> int:
        """Number of parameters that serve one token: the router and its chosen experts."""
        expert = self.gate_up_proj[0].numel() + self.down_proj[0].numel()
        return self.router.numel() + self.options.experts_per_token * expert

    def flops_per_token(self) -> float:
        """Forward FLOPs for one token: the router and the chosen experts' three matrices."""
        return 2 * self.active_parameters()


COMPONENT = MixtureOfExperts
