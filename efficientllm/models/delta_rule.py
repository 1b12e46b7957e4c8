"""The generalized delta rule of RWKV-7: token by token, and the same by matrix products over chunks.

Peng et al. 2025, arXiv 2503.14456, section 3. Per head, with a state S in R^(D x D) and vectors w, k, v, a, b of each
token: S_t = S_{t-1} (diag(w_t) + a_t b_t^T) + v_t k_t^T and y_t = S_t r_t.

Over a chunk of tokens, with the decays' running product taken out of the state, u_t = S_{t-1} a_t obeys a triangular
system, so that a chunk maps the state affinely, S -> S M + N, and the chunks can be chained (the WY representation of
Yang et al. 2024, arXiv 2406.06484, section 3, with a decay per channel).

Shape suffixes beside the package's: L chunk length, Z number of chunks.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_SMALL = 8


def recurrent_delta_rule(
    r: torch.Tensor,
    log_w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    state_bhdd: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the recurrence token by token, in float32 or better.

    Args:
        r: Receptances `[B, T, H, D]`, as are the others.
        log_w: Logarithms of the decays, at most 0.
        k: Keys.
        v: Values.
        a: Vectors whose content is read off the state.
        b: Vectors at which it is written back.
        state_bhdd: State before the first token, value dimension first; None for zero.

    Returns:
        Outputs `[B, T, H, D]` and the state after the last token, both float32, or float64 where `r` is.
    """
    dtype = torch.promote_types(r.dtype, torch.float32)
    r, w, k, v, a, b = (x.to(dtype) for x in (r, log_w.to(dtype).exp(), k, v, a, b))
    batch, length, heads, width = r.shape
    state = r.new_zeros(batch, heads, width, width) if state_bhdd is None else state_bhdd.to(dtype)
    outputs = []
    for t in range(length):
        read = state @ a[:, t].unsqueeze(-1)
        written = read @ b[:, t].unsqueeze(-2) + v[:, t].unsqueeze(-1) @ k[:, t].unsqueeze(-2)
        state = state * w[:, t].unsqueeze(-2) + written
        outputs.append((state @ r[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, dim=1), state


def delta_rule_step(
    r: torch.Tensor,
    log_w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    state_bhdd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes one token of `recurrent_delta_rule`, as decoding does, by element; see `state_space.recurrent_step`.

    Args:
        r: Receptance `[B, H, D]`, as are the others.
        log_w: Logarithms of the decays.
        k: Key.
        v: Value.
        a: Vector read.
        b: Vector written.
        state_bhdd: State before the token.

    Returns:
        Output `[B, H, D]` and the state after the token, both float32, or float64 where `r` is.
    """
    dtype = torch.promote_types(r.dtype, torch.float32)
    r, w, k, a, b = (x.to(dtype).unsqueeze(-2) for x in (r, log_w.to(dtype).exp(), k, a, b))
    state = state_bhdd.to(dtype)
    read = (state * a).sum(dim=-1, keepdim=True)
    state = state * w + read * b + v.to(dtype).unsqueeze(-1) * k
    return (state * r).sum(dim=-1), state


def chunked_delta_rule(
    r: torch.Tensor,
    log_w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    state_bhdd: torch.Tensor | None = None,
    *,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes `recurrent_delta_rule` by matrix products.

    Within a chunk, decays enter as quotients of running products, which reach exp(chunk / 2 * max |log_w|): 3e8 for 64
    tokens of RWKV-7, whose log_w is above -0.61.

    Args:
        r: See `recurrent_delta_rule`, as are the next six.
        log_w: Logarithms of the decays.
        k: Keys.
        v: Values.
        a: Vectors read.
        b: Vectors written.
        state_bhdd: State before the first token.
        chunk: L, a power of two; lengths that are no multiple of it are padded with tokens that change nothing.

    Returns:
        Outputs `[B, T, H, D]` and the state after the last token, both float32, or float64 where `r` is.
    """
    dtype = torch.promote_types(r.dtype, torch.float32)
    batch, length, heads, width = r.shape
    missing = -length % chunk
    count = (length + missing) // chunk

    def chunks(x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x.to(dtype), (0, 0, 0, 0, 0, missing))
        return padded.reshape(batch, count, chunk, heads, width).permute(0, 3, 1, 2, 4)  # [B, H, Z, L, D]

    r, log_w, k, v, a, b = (chunks(x) for x in (r, log_w, k, v, a, b))
    after = log_w.cumsum(dim=-2)
    before = after - log_w
    end = log_w.sum(dim=-2, keepdim=True)
    # quotients of decays are taken about the chunk's middle, so that neither factor grows beyond float32; it cancels
    middle = after[..., chunk // 2 - 1 : chunk // 2, :].detach()
    reading = torch.cat((a * (before - middle).exp(), r * (after - middle).exp()), dim=-2)
    writing = torch.cat((b, k), dim=-2) * torch.cat((middle - after, middle - after), dim=-2).exp()
    scores = reading @ writing.transpose(-1, -2)
    rows = torch.arange(chunk, device=r.device)
    earlier, causal = rows[:, None] > rows, rows[:, None] >= rows
    from_a, from_r = scores.split(chunk, dim=-2)
    a_b, a_k = from_a.masked_fill(~torch.cat((earlier, earlier), dim=-1), 0).split(chunk, dim=-1)
    from_r = from_r.masked_fill(~torch.cat((causal, causal), dim=-1), 0)

    # u = (I - a_b)^-1 (a S^T + a_k v) = from_state S^T + from_values
    solved = UnitLowerInverse.apply(a_b) @ torch.cat((a * before.exp(), a_k @ v), dim=-1)
    from_state, from_values = solved.split([width, width], dim=-1)
    b_end, k_end = b * (end - after).exp(), k * (end - after).exp()
    transition = from_state.transpose(-1, -2) @ b_end + torch.diag_embed(end.squeeze(-2).exp())
    addition = torch.cat((from_values, v), dim=-2).transpose(-1, -2) @ torch.cat((b_end, k_end), dim=-2)
    if state_bhdd is None:
        state_bhdd = r.new_zeros(batch, heads, width, width)
    states, last = AffineScan.apply(transition, addition, state_bhdd.to(dtype))
    transposed = states.transpose(-1, -2)

    u = from_state @ transposed + from_values
    y = (r * after.exp()) @ transposed + from_r @ torch.cat((u, v), dim=-2)
    y = y.permute(0, 2, 3, 1, 4).reshape(batch, count * chunk, heads, width)
    return y[:, :length], last


class UnitLowerInverse(torch.autograd.Function):
    """(I - N)^-1 of strictly lower triangular matrices `[..., L, L]`, L a power of two."""

    @staticmethod
    def forward(ctx: Any, lower: torch.Tensor) -> torch.Tensor:  # noqa: D102
        inverse = _inverse(lower)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: D102
        (inverse,) = ctx.saved_tensors
        transposed = inverse.transpose(-1, -2)
        found: torch.Tensor = transposed @ gradient @ transposed
        return found.tril(-1)


def _inverse(lower: torch.Tensor) -> torch.Tensor:
    """Inverts by halves; small blocks by the series I + N + N^2 + ..., which ends, in factors (I + N)(I + N^2)(I + N^4).

    For larger blocks the powers of N would grow far beyond the inverse, and cancel badly.
    """
    size = lower.shape[-1]
    if size <= _SMALL:
        inverse = torch.eye(size, device=lower.device, dtype=lower.dtype) + lower
        power, reached = lower, 2
        while reached < size:
            power = power @ power
            inverse = inverse + power @ inverse
            reached *= 2
        return inverse
    half = size // 2
    # both diagonal blocks at once
    blocks = torch.stack((lower[..., :half, :half], lower[..., half:, half:]))
    first, second = _inverse(blocks).unbind()
    corner = second @ lower[..., half:, :half] @ first
    upper = torch.cat((first, torch.zeros_like(first)), dim=-1)
    return torch.cat((upper, torch.cat((corner, second), dim=-1)), dim=-2)


class AffineScan(torch.autograd.Function):
    """States of S_{z+1} = S_z M_z + N_z.

    Args:
        transition: M `[B, H, Z, D, D]`.
        addition: N `[B, H, Z, D, D]`.
        initial: S_0 `[B, H, D, D]`.

    Returns:
        The states before each chunk `[B, H, Z, D, D]`, and the one after the last `[B, H, D, D]`.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, transition: torch.Tensor, addition: torch.Tensor, initial: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        after = _scan(transition, addition, initial)
        before = torch.cat((initial.unsqueeze(2), after[:, :, :-1]), dim=2)
        ctx.save_for_backward(transition, before)
        return before, after[:, :, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(  # noqa: D102
        ctx: Any, gradient: torch.Tensor, last_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        transition, before = ctx.saved_tensors
        # backwards the law is the same: G_z = G_{z+1} M_z^T + g_z
        total = _scan(transition.transpose(-1, -2).flip(2), gradient.flip(2), last_gradient).flip(2)
        later = torch.cat((total[:, :, 1:], last_gradient.unsqueeze(2)), dim=2)
        return before.transpose(-1, -2) @ later, later, total[:, :, 0]


def _scan(transition: torch.Tensor, addition: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """States after each chunk: one after the other on a CPU, in about twice the square root of their number on a GPU."""
    if transition.device.type == "cuda":
        return two_level_scan(transition, addition, initial)
    state, states = initial, []
    for step in range(transition.shape[2]):
        state = state @ transition[:, :, step] + addition[:, :, step]
        states.append(state)
    return torch.stack(states, dim=2)


def two_level_scan(transition: torch.Tensor, addition: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """Composes the maps of runs of chunks, all runs at once; then chains the runs; then applies each run's prefixes.

    Every map is read and written a few times only, where a scan of logarithmic depth would do so in every pass.
    """
    count, width = transition.shape[2], transition.shape[-1]
    run = 2 ** ((count - 1).bit_length() // 2)
    missing = -count % run
    if missing:
        identity = torch.eye(width, device=transition.device, dtype=transition.dtype)
        transition = torch.cat((transition, identity.expand(*transition.shape[:2], missing, -1, -1)), dim=2)
        addition = F.pad(addition, (0, 0, 0, 0, 0, missing))
    transition, addition = (x.unflatten(2, (-1, run)) for x in (transition, addition))
    linear, constant = transition[:, :, :, 0], addition[:, :, :, 0]
    linears, constants = [linear], [constant]
    for step in range(1, run):
        both = torch.cat((linear, constant), dim=-2) @ transition[:, :, :, step]
        linear, constant = both[..., :width, :], both[..., width:, :] + addition[:, :, :, step]
        linears.append(linear)
        constants.append(constant)
    state, starts = initial, [initial]
    for place in range(transition.shape[2] - 1):
        state = state @ linear[:, :, place] + constant[:, :, place]
        starts.append(state)
    prefixes = torch.stack(starts, dim=2).unsqueeze(3) @ torch.stack(linears, dim=3) + torch.stack(constants, dim=3)
    return prefixes.flatten(2, 3)[:, :, :count]
