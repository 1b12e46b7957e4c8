"""Sparse mixture of SwiGLU experts, as in Mixtral (Jiang et al. 2024, arXiv 2401.04088, section 2.1).

Each token goes to the `experts_per_token` experts with the highest router scores; their outputs are summed with the
softmax over those scores. No token is dropped: tokens are sorted by expert, and each expert multiplies one contiguous
slice.

The experts' weights are stacked tensors, not `nn.Linear`. So bitsandbytes, which replaces linear layers alone, would
leave them in 16 bits, and PEFT's "all-linear" would adapt attention alone; PEFT reaches stacked weights by
`target_parameters`.
"""

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from efficientllm.config.schema import Section
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


def load_balancing_loss(probabilities_ne: torch.Tensor, chosen_nk: torch.Tensor) -> torch.Tensor:
    """Switch's balancing loss of one layer (Fedus et al. 2021, arXiv 2101.03961, equation 4), for top-k as in Mixtral.

    Args:
        probabilities_ne: Softmax over all router scores `[N, E]`.
        chosen_nk: Chosen experts `[N, k]`.

    Returns:
        E * sum_e f_e P_e, where f_e is the mean number of a token's choices that fall on expert e and P_e the mean
        probability of e; k where the load is even.
    """
    experts = probabilities_ne.shape[1]
    load_e = torch.bincount(chosen_nk.flatten(), minlength=experts).to(probabilities_ne.dtype) / len(chosen_nk)
    return experts * (load_e * probabilities_ne.mean(dim=0)).sum()


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

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        experts, width, inner = self.options.experts, config.hidden_size, config.intermediate_size
        self.router = nn.Parameter(torch.empty(experts, width))
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

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
        order = chosen_nk.flatten().argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        counts = torch.bincount(chosen_nk.flatten(), minlength=self.options.experts).tolist()
        sorted_out = self._experts(_Dispatch.apply(x_nc, order, inverse, copies), counts)
        out_nkc = _Rearrange.apply(sorted_out, inverse, order).view(-1, copies, x_nc.shape[-1])
        out_nc = (out_nkc * weights_nk.unsqueeze(-1)).sum(dim=1)
        loss = None
        if self.training:
            real = slice(None) if span.padding_mask_bt is None else span.padding_mask_bt.flatten()
            balance = load_balancing_loss(scores_ne[real].softmax(dim=-1), chosen_nk[real])
            loss = self.options.load_balancing_weight * balance
        return out_nc.view_as(hidden_btc), loss

    def _experts(self, sorted_nc: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Runs each expert on its contiguous slice of the sorted tokens."""
        outputs = []
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
