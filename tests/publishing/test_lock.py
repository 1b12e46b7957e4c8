"""What is published is what the lock files describe."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from efficientllm import paths
from efficientllm.errors import ArtifactError
from efficientllm.publishing.publish import publish


def refused(message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        publish("first")
    assert message in str(caught.value)
    assert str(caught.value).endswith("run `dvc repro`, then publish")
    assert "\n" not in str(caught.value)
    assert not paths.PUBLISHED.exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("params.yaml", "method: lora", "method: dora", "params.yaml: method has changed since report ran"),
        ("params.yaml", "seed: 0", "seed: 1", "params.yaml: seed has changed since prepare ran"),
        ("params.yaml", "profile: cpu", "profile: gpu", "params.yaml: profile has changed since prepare ran with profiles/cpu.yaml"),
        ("profiles/cpu.yaml", "    steps: 100\n", "    steps: 99\n", "profiles/cpu.yaml: tune.training has changed since tune@lora-small ran"),
    ],
)  # fmt: skip
def test_a_parameter_that_has_changed_since(run: Path, file: str, old: str, new: str, message: str) -> None:
    text = (run / file).read_text()
    assert text.count(old) == 1
    (run / file).write_text(text.replace(old, new))
    refused(message)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1]", "it is no mapping"),
        ("<<<<<<< HEAD\n", "it is no mapping"),
        ("stages: 3\n", "'stages': input should be a valid dictionary"),
        ("stages: {report: 3}\n", "'stages.report': input should be a valid dictionary"),
        ("stages: {report: {outs: [{md5: a}]}}\n", "'stages.report.outs.0.path': field required"),
        (
            "stages: {report: {params: {params.yaml: 1}}}\n",
            "'stages.report.params.params.yaml': input should be a valid dictionary",
        ),
    ],
)
@pytest.mark.parametrize("lock", ["dvc.lock", "stages/tuning/dvc.lock"])
def test_a_lock_that_dvc_did_not_write(run: Path, lock: str, text: str, fault: str) -> None:
    (run / lock).write_text(text)
    refused(f"{lock} is not as DVC writes it ({fault}): restore or delete it")


@pytest.mark.parametrize("missing", ["outs", "md5"])
def test_a_lock_that_does_not_know_the_report(run: Path, missing: str) -> None:
    lock = YAML(typ="safe").load((run / "dvc.lock").read_text())
    report = lock["stages"]["report"]
    report.pop(missing, None)
    for entry in report.get("outs", []):
        entry.pop(missing, None)
    with (run / "dvc.lock").open("w") as stream:
        YAML(typ="safe").dump(lock, stream)
    refused("reports/index.html is not the one that dvc.lock describes")
