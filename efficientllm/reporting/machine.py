"""The line that says on which machine, with which software, the figures were taken."""

from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.parts import revisions
from efficientllm.reporting.summary import flatten

# where hardware.json states a fact, as `measurement.hardware.probe` writes it
_FACTS: tuple[tuple[str, str], ...] = (
    ("GPU", "gpus.0.name"),
    ("driver", "gpus.0.driver"),
    ("CPU", "cpu.model"),
    ("cores", "cpu.allowed_cores"),
    ("PyTorch", "software.torch"),
)
_UNKNOWN = "not known"


def machine_facts(evidence: Evidence) -> list[tuple[str, str]]:
    """Lists processors, cores, PyTorch, revision and profile as names and texts.

    A GPU that the machine does not have is left out, with its driver; any other fact that is not stated is "not known". Where
    records are of several machines, each of them is in the text.
    """
    machines = [evidence.hardware, *(record.provenance.hardware for record in evidence.records.values())]
    stated = [dict(flatten(machine)) for machine in machines]
    facts = []
    for name, key in _FACTS:
        found = dict.fromkeys(machine[key] for machine in stated if machine.get(key, "none") != "none")
        text = ", ".join(found) or _UNKNOWN
        if name == "PyTorch" and text == _UNKNOWN:
            versions = {record.provenance.versions.get("torch", _UNKNOWN) for record in evidence.records.values()}
            text = ", ".join(sorted(versions)) or _UNKNOWN
        if not key.startswith("gpus.") or text != _UNKNOWN:
            facts.append((name, text))
    facts.append(("revision", ", ".join(revisions(evidence)) or _UNKNOWN))
    facts.append(("profile", evidence.profile))
    return facts
