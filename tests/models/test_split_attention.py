"""Attention of one query with split keys, by Triton."""

import pytest
import torch


@pytest.mark.parametrize("masked", ["no", "hidden", "hidden for each head", "added"])
@pytest.mark.parametrize(
    ("sequences", "key_heads", "groups", "width", "value_width", "keys"),
    [
        (1, 2, 3, 16, 16, 5),
        (2, 2, 3, 24, 24, 130),
        (1, 1, 5, 64, 64, 700),
        (3, 4, 1, 32, 32, 64),
        (1, 1, 17, 40, 24, 257),
        (9, 2, 2, 16, 16, 70),
    ],
)
def test_equals_the_equation(triton_device, sequences, key_heads, groups, width, value_width, keys, masked):
    from efficientllm.models import split_attention as module

    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(triton_device)

    q = normal(sequences, key_heads, groups, width)
    k = normal(sequences, key_heads, keys + 9, width)[:, :, :keys]
    v = normal(sequences, key_heads, keys + 9, value_width)[:, :, :keys]
    scores = q @ k.transpose(-1, -2) * 0.3
    mask = None
    if masked == "added":
        mask = normal(1, key_heads, groups, keys)
        mask[..., keys // 2 :: 3] = -torch.inf
        scores = scores + mask
    elif masked != "no":
        heads = (key_heads, groups) if masked == "hidden for each head" else (1, 1)
        mask = normal(sequences, *heads, keys) > 0
        mask[..., -1] = True
        scores = scores.masked_fill(~mask, -torch.inf)
    expected = scores.softmax(dim=-1) @ v
    for _ in range(2):  # the second call finds what the first left behind
        found = module.split_attention(q, k, v, mask, 0.3)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not module.finished_parts(triton_device, module.multiprocessors(triton_device)).any()


@pytest.mark.triton
@pytest.mark.parametrize("heads", [1, 7, 32, 132, 4000])
def test_parts_cover_the_keys_and_fill_the_device(heads):
    pytest.importorskip("triton")
    from efficientllm.models.split_attention import split

    for keys in (1, 64, 65, 513, 2041, 8177, 131072):
        share, parts = split(heads, keys, 64, 132)
        assert (parts - 1) * share < keys <= parts * share
        assert share % 64 == 0
        assert parts <= max(1, min(32, 132 // heads))


@pytest.mark.triton
@pytest.mark.parametrize(
    ("rows", "width", "size", "kilobytes", "expected"),
    [
        (16, 64, 2, 99, 128),  # a GPU with 100 KiB for each multiprocessor
        (16, 128, 2, 99, 64),
        (16, 128, 2, 163, 128),
        (16, 128, 2, 227, 128),  # an H100
        (16, 256, 2, 227, 64),
        (16, 128, 4, 227, 64),
        (64, 128, 2, 99, 16),
        (128, 256, 4, 48, 16),
    ],
)
def test_tiles_fit_a_multiprocessor(rows, width, size, kilobytes, expected):
    pytest.importorskip("triton")
    from efficientllm.models.split_attention import tile_keys

    assert tile_keys(rows, width, width, size, kilobytes * 1024) == expected
