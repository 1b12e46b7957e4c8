"""Names from the parameters never become commands: with the commands that a user types, in a copy of the project."""

import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from efficientllm import pipeline

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "pipeline"))
from project import Project, working_copy  # noqa: E402 - lies beside the pipeline's tests

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

RUN = {"size": "small", "block": "pre_norm", "mixer": "gqa", "position": "rope", "feedforward": "swiglu"}


SEEM_TO_HAVE_RUN = (
    "data", "base/small", "pretrain/dense_small", "pretrain/dense_medium", "tune/lora-small", "quantize/int4-small",
)  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return working_copy(tmp_path_factory.mktemp("names") / "project")


@pytest.fixture
def project(copy: Project):
    """A copy whose earlier stages seem to have run, so that nothing but the names stops a stage."""
    for folder in SEEM_TO_HAVE_RUN:  # anew for each test: `dvc exp run` takes away what no stage has made
        (copy.root / "artifacts" / folder).mkdir(parents=True, exist_ok=True)
        (copy.root / "artifacts" / folder / "file").write_text("x")
    yield copy
    copy.run("git", "checkout", "-q", ".")


def change(project: Project, **values: object) -> None:
    """Sets keys of params.yaml; a mapping is merged into the one that is there."""
    yaml = YAML()
    path = project.root / "params.yaml"
    content = yaml.load(path.read_text())
    for key, value in values.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    with path.open("w") as stream:
        yaml.dump(content, stream)


def traces(project: Project) -> list[str]:
    """Files that an injected command has made."""
    return [path.name for folder in (project.root, project.root.parent) for path in folder.glob("injected*")]


HOSTILE = {
    "method": {"method": "x; touch injected"},
    "profile": {"profile": "x; touch injected"},
    "profile that leaves its folder": {"profile": "../../etc/passwd"},
    "methods": {"methods": ["lora", "x; touch injected"]},
    "precisions": {"precisions": ["$(touch injected)"]},
    "sizes": {"sizes": ["`touch injected`"]},
    "architectures": {"architectures": {"x$(touch injected)": RUN}},
    "component": {"architectures": {"mqa": RUN | {"mixer": "../../x; touch injected"}}},
    "bases": {"bases": {"x; touch injected": "artifacts/pretrain/dense_small"}},
    "replicas": {"replicas": {"seeds": ["1; touch injected"]}},
    "newline": {"methods": ["lora\ntouch injected"]},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_repro_stops_at_the_check(project: Project, case: str) -> None:
    change(project, **HOSTILE[case])
    done = project.run("dvc", "repro", "--keep-going", check=False)
    assert done.returncode != 0
    assert traces(project) == []
    ran = Project.stages_run(done.stdout)
    if case != "newline":
        assert ran == ["probe"], done.stdout
        assert [line for line in done.stdout.splitlines() if line.startswith("error: ")], done.stdout
        assert "Traceback" not in done.stdout


def test_the_command_line_of_dvc(project: Project) -> None:
    """`-S` with Hydra's quotes: what a person, or a script that takes names from one, would write."""
    for setting in ("method='x; touch injected'", "profile=../../etc/passwd", "methods=['x; touch injected']"):
        done = project.run("dvc", "exp", "run", "--set-param", setting, check=False)
        assert done.returncode != 0
        assert Project.stages_run(done.stdout) == ["probe"]
        project.run("git", "checkout", "-q", ".")
    assert traces(project) == []


# `-s` and `--downstream` leave the check out; each name comes with what it takes to get past DVC's own
ALONE = {
    "tune": {"sizes": ["x; touch injected #/../small"]},
    "quantize": {"precisions": ["x; touch injected #/../int4"]},
    "measure_tune": {"methods": ["x; touch injected #/../lora"]},
    "measure_quantize": {"precisions": ["x; touch injected #/../int4"]},
    "pretrain": {"architectures": {"x; touch injected": RUN}},
    "measure_pretrain": {"architectures": {"x; touch injected": RUN}},
    "base": {"bases": {"x; touch injected": "artifacts/pretrain/dense_small"}},
    "replicate_pretrain": {"replicas": {"seeds": ["1; touch injected"], "architectures": ["x; touch injected"]}},
    "replicate_tune": {"replicas": {"seeds": ["$(touch injected)"], "methods": ["lora"]}},
}


@pytest.mark.parametrize(
    "way", [["--single-item", "--keep-going"], ["--downstream", "--keep-going"]], ids=["single", "downstream"]
)
@pytest.mark.parametrize("stage", ALONE)
def test_a_stage_alone(project: Project, stage: str, way: list[str]) -> None:
    change(project, sizes=["small"], methods=["lora"], precisions=["int4"])
    change(project, **ALONE[stage])
    project.environment["EFFICIENTLLM_PRELOAD"] = "0"
    done = project.run("dvc", "repro", *way, pipeline.address(stage), check=False)
    assert done.returncode != 0
    assert traces(project) == [], done.stdout


def test_without_the_guards_the_command_would_run(project: Project) -> None:
    """The test above can fail: the same name, in the command as one would write it first."""
    project.replace(
        "stages/tuning/dvc.yaml", "python -m stages.tune ${item}", "python -m stages.tune --size ${item.size}"
    )
    change(project, **ALONE["tune"])
    project.run("dvc", "repro", "--single-item", "--keep-going", pipeline.address("tune"), check=False)
    assert traces(project)
    for name in traces(project):
        (project.root / name).unlink()


def test_a_stage_refuses_names_on_its_own_command_line(project: Project) -> None:
    for arguments in (
        ["stages.pretrain", "--architecture", "../../etc"],
        ["stages.measure", "--axis", "tune", "--cell", "../../etc/passwd"],
        ["stages.replicate", "--architecture", "..", "--seed", "1"],
    ):
        done = project.run("python", "-m", *arguments, check=False)
        assert done.returncode == 1
        assert done.stdout.startswith("error: unknown ")
