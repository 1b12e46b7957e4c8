"""The stages of the smallest run, and what each writes last."""

STAGES = {
    "prepare": (),
    "pretrain": ("--architecture", "dense_small"),
    "base": ("--size", "small"),
    "tune": ("--method", "lora", "--size", "small"),
    "quantize": ("--precision", "bfloat16", "--size", "small"),
    "measure": ("--axis", "tune", "--cell", "lora-small"),
    "normalize": (),
    "report": (),
}

OUTPUTS = {
    "prepare": ["artifacts/data"],
    "pretrain": ["artifacts/pretrain/dense_small", "artifacts/telemetry/pretrain/dense_small"],
    "base": ["artifacts/base/small", "artifacts/base-quality/small.json"],
    "tune": ["artifacts/tune/lora-small", "artifacts/telemetry/tune/lora-small"],
    "quantize": ["artifacts/quantize/bfloat16-small"],
    "measure": ["artifacts/measure/tune/lora-small.json"],
    "normalize": ["results/results.csv", "results/ranking.csv", "results/metrics.json"],
    "report": ["reports/index.html"],
}
