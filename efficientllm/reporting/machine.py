"""The line that says on which machine, with which software, the figures were taken."""

from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.summary import flatten, revisions

# names under which hardware.json may state a fact, the most specific first
_FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("device", ("device", "accelerator")),
    ("GPU", ("gpu.name", "gpus.0.name", "gpu")),
    ("CPU", ("cpu.model", "cpu.name", "cpu_model", "cpu")),
    ("cores", ("cpu.cores_allowed", "cpu.cores", "cores_allowed", "cores")),
    ("PyTorch", ("torch", "torch.version", "versions.torch", "software.torch")),
)


def machine_facts(evidence: Evidence) -> list[tuple[str, str]]:
    """Lists device, processor, cores, torch, revision and profile as names and texts."""
    known = dict(flatten(evidence.hardware))
    facts = []
    for name, keys in _FACTS:
        found = next((known[key] for key in keys if key in known), "not known")
        facts.append((name, found))
    facts.append(("revision", ", ".join(revisions(evidence)) or "not known"))
    facts.append(("profile", evidence.profile))
    return facts
