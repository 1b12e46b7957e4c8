"""Structured state-space duality: the recurrence of Mamba-2, and the same by matrix products over chunks.

Dao and Gu 2024, arXiv 2405.21060. Per head, with scalar decay a_t = exp(log_decay_t), state S in R^(P x N):
S_t = a_t S_{t-1} + x_t b_t^T and y_t = S_t c_t (their equation 1 with the step size folded into x and the decay).

Shape suffixes beside the package's: P head size, N state size, L chunk length, Z number of chunks. Queries and keys of
attention are c and b here, which groups of heads share.
"""

import torch
from torch.nn import functional as F


def recurrent_scan(
    x_bthp: torch.Tensor,
    log_decay_bth: torch.Tensor,
    b_btgn: torch.Tensor,
    c_btgn: torch.Tensor,
    state_bhpn: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the recurrence token by token.

    Args:
        x_bthp: Inputs, scaled by their step size.
        log_decay_bth: Logarithms of the decays, at most 0.
        b_btgn: Input vectors of each group of heads.
        c_btgn: Output vectors of each group of heads.
        state_bhpn: State before the first token; None for zero.

    Returns:
        Outputs `[B, T, H, P]` and the state after the last token, both float32.
    """
    x, b, c = x_bthp.float(), b_btgn.float(), c_btgn.float()
    batch, length, heads, width = x.shape
    b, c = (v.repeat_interleave(heads // v.shape[2], dim=2) for v in (b, c))
    decay = log_decay_bth.float().exp()
    state = state_bhpn
    if state is None:
        state = x.new_zeros(batch, heads, width, b.shape[-1])
    outputs = []
    for step in range(length):
        update = x[:, step].unsqueeze(-1) @ b[:, step].unsqueeze(-2)
        state = decay[:, step, :, None, None] * state + update
        outputs.append((state @ c[:, step].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, dim=1), state


def recurrent_step(
    x_bhp: torch.Tensor,
    log_decay_bh: torch.Tensor,
    b_bgn: torch.Tensor,
    c_bgn: torch.Tensor,
    state_bhpn: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes one token of `recurrent_scan`, as decoding does, in one pass over the state where it is compiled.

    By element, for matrix products with one column would each write out or read a tensor as large as the state.

    Args:
        x_bhp: Input, scaled by its step size.
        log_decay_bh: Logarithms of the decays.
        b_bgn: Input vector of each group of heads.
        c_bgn: Output vector of each group of heads.
        state_bhpn: State before the token.

    Returns:
        Output `[B, H, P]` and the state after the token, both float32.
    """
    heads_per_group = x_bhp.shape[1] // b_bgn.shape[1]
    b, c = (v.float().repeat_interleave(heads_per_group, dim=1).unsqueeze(-2) for v in (b_bgn, c_bgn))
    state = log_decay_bh.float().exp()[..., None, None] * state_bhpn + x_bhp.float().unsqueeze(-1) * b
    return (state * c).sum(dim=-1), state


def chunked_scan(
    x_bthp: torch.Tensor,
    log_decay_bth: torch.Tensor,
    b_btgn: torch.Tensor,
    c_btgn: torch.Tensor,
    state_bhpn: torch.Tensor | None = None,
    *,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes `recurrent_scan` by matrix products (their section 6): attention within chunks, states between them.

    Args:
        x_bthp: See `recurrent_scan`, as are the next four.
        log_decay_bth: Logarithms of the decays.
        b_btgn: Input vectors.
        c_btgn: Output vectors.
        state_bhpn: State before the first token.
        chunk: L; lengths that are no multiple of it are padded with tokens that change nothing.

    Returns:
        Outputs `[B, T, H, P]` in the type of `x_bthp`, and the state after the last token, float32.
    """
    batch, length, heads, width = x_bthp.shape
    groups = b_btgn.shape[2]
    chunk = min(chunk, length)
    missing = -length % chunk
    if missing:
        x_bthp, b_btgn, c_btgn = (F.pad(v, (0, 0, 0, 0, 0, missing)) for v in (x_bthp, b_btgn, c_btgn))
        log_decay_bth = F.pad(log_decay_bth, (0, 0, 0, missing))
    count = (length + missing) // chunk
    # heads before tokens, so that every product below is a batched matrix product without copies of its large side
    x = x_bthp.view(batch, count, chunk, groups, heads // groups, width)
    b = b_btgn.view(batch, count, chunk, groups, -1).permute(0, 1, 3, 2, 4)
    c = c_btgn.view(batch, count, chunk, groups, -1).permute(0, 1, 3, 2, 4)
    log_decay = log_decay_bth.float().view(batch, count, chunk, groups, heads // groups).permute(0, 1, 3, 4, 2)
    summed = log_decay.cumsum(dim=-1)  # [B, Z, G, H/G, L]

    # within chunks: y_i = sum_{j <= i} (c_i . b_j) exp(summed_i - summed_j) x_j
    scores = c @ b.transpose(-1, -2)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    # masked before the exponential: above the diagonal it would overflow, and its gradient be no number
    between = (summed.unsqueeze(-1) - summed.unsqueeze(-2)).masked_fill(~causal, -torch.inf).exp()
    weights = scores.unsqueeze(3) * between.to(x.dtype)
    x_heads = x.permute(0, 1, 3, 4, 2, 5)
    inner = weights @ x_heads

    # each chunk's contribution to the state at its end: sum_j exp(summed_L - summed_j) x_j b_j^T
    to_end = (summed[..., -1:] - summed).exp().to(x.dtype)
    contributions = (x_heads * to_end.unsqueeze(-1)).transpose(-1, -2) @ b.unsqueeze(3)  # [B, Z, G, H/G, P, N]

    # between chunks: the same law, with a chunk in place of a token
    totals = F.pad(summed[..., -1].permute(0, 2, 3, 1), (1, 0)).cumsum(dim=-1)  # [B, G, H/G, Z + 1]
    reach = totals.unsqueeze(-1) - totals.unsqueeze(-2)
    lower = torch.ones(count + 1, count + 1, dtype=torch.bool, device=x.device).tril()
    reach = reach.masked_fill(~lower, -torch.inf).exp()
    if state_bhpn is None:
        initial = torch.zeros_like(contributions[:, :1], dtype=torch.float32)
    else:
        initial = state_bhpn.float().view(batch, 1, groups, heads // groups, width, -1)
    sources = torch.cat((initial, contributions.float()), dim=1)
    states = torch.einsum("bghij,bjghpn->bighpn", reach, sources)
    before, last = states[:, :-1].to(x.dtype), states[:, -1]

    outer = (c.unsqueeze(3) @ before.transpose(-1, -2)) * summed.exp().to(x.dtype).unsqueeze(-1)
    y = (inner + outer).permute(0, 1, 4, 2, 3, 5).reshape(batch, count * chunk, heads, width)
    return y[:, :length], last.reshape(batch, heads, width, -1)
