"""The line that says on which machine, with which software, the figures were taken."""

import re

from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.summary import flatten, revisions

# where hardware.json states a fact: patterns over its dotted names, the first match in sorted order counts
_FACTS: tuple[tuple[str, str], ...] = (
    ("device", r"(device|accelerator)(\.(kind|type|name))?"),
    ("GPU", r"gpus?(\.0)?(\.(name|model))?|gpu_name"),
    ("CPU", r"cpu([._](name|model|model_name))?"),
    ("cores", r"(cpu\.)?(cores_allowed|allowed_cores|cores|logical_cores)"),
    ("PyTorch", r"((versions|software)\.)?torch(\.version)?"),
)
_UNKNOWN = "not known"


def machine_facts(evidence: Evidence) -> list[tuple[str, str]]:
    """Lists device, processors, cores, PyTorch, revision and profile as names and texts.

    A GPU that the machine does not have is left out; any other fact that is not stated is "not known".
    """
    known = dict(flatten(evidence.hardware))
    facts = []
    for name, pattern in _FACTS:
        stated = [known[key] for key in sorted(known) if re.fullmatch(pattern, key)]
        text = next((text for text in stated if text not in (_UNKNOWN, "none")), _UNKNOWN)
        if name == "PyTorch" and text == _UNKNOWN:
            versions = {record.provenance.versions.get("torch", _UNKNOWN) for record in evidence.records.values()}
            text = ", ".join(sorted(versions)) or _UNKNOWN
        if name != "GPU" or text != _UNKNOWN:
            facts.append((name, text))
    facts.append(("revision", ", ".join(revisions(evidence)) or _UNKNOWN))
    facts.append(("profile", evidence.profile))
    return facts
