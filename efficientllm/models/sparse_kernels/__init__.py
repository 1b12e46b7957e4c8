"""Triton kernels of native sparse attention (Yuan et al. 2025, arXiv 2502.11089), forward and backward.

Two attentions: a banded one over keys at regular distances, which serves the compressed and the sliding branch, and one
over chosen blocks. No tensor of T x T scores exists, and no sum depends on the order in which programs finish. Imported
where the kernels run; Triton itself is not installed everywhere.

Names in the kernels: rows are queries (times heads of a group), columns are keys, `width` is D and `padded` the power of
two that holds it; `x_b`, `x_t`, `x_h` are strides of batch, token and head. Logarithms are to base 2; that of a query
without keys is +inf, which makes its weights zero.
"""
