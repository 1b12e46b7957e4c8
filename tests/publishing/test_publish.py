"""Publishing: the folder is complete, belongs together, and is safe to serve."""

import csv
import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from ruamel.yaml import YAML

from efficientllm import config, paths, pipeline
from efficientllm.config.schema import FilesSource, TokenizerSettings
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.files import read_json, write_json
from efficientllm.measurement.provenance import git_state
from efficientllm.publishing.publish import _command, device, publish
from efficientllm.publishing.published_set import PublishedSet, read_sets, render_index, write_index
from efficientllm.publishing.revisions import Revision, read_revisions
from efficientllm.records import Record, read_record, write_record

ROOT = Path(__file__).parents[2]
FILES = {
    "index.html", "results.csv", "ranking.csv", "metrics.json", "records.json", "hardware.json", "params.yaml", "profile.yaml",
    "dvc.lock", "reproduce.sh", "set.json", "checksums.json",
}  # fmt: skip


class Links(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.targets += [value for name, value in attributes if name in ("href", "src") and value]


def test_the_folder_holds_the_run(run: Path) -> None:
    done = publish("first")
    assert done.folder == Path("reports/published/first")
    assert {path.name for path in done.folder.iterdir()} == FILES
    assert (done.files, done.replaced, done.sets) == (len(FILES), False, 1)
    for source, copy in (
        ("reports/index.html", "index.html"), ("results/results.csv", "results.csv"), ("results/ranking.csv", "ranking.csv"),
        ("results/metrics.json", "metrics.json"), ("hardware.json", "hardware.json"), ("params.yaml", "params.yaml"),
        ("profiles/cpu.yaml", "profile.yaml"),
    ):  # fmt: skip
        assert (done.folder / copy).read_bytes() == (run / source).read_bytes()
    locked = pipeline.read_lock(done.folder / "dvc.lock")
    assert {"prepare", "tune@lora-small", "report"} <= locked.keys()
    assert {name: locked[name] for name in ("tune@lora-small", "tune@oft-small")} == pipeline.read_lock(
        run / "stages/tuning/dvc.lock"
    )


def test_every_record_is_there_in_full(run: Path) -> None:
    published = json.loads((publish("first").folder / "records.json").read_text())
    original = [json.loads(path.read_text()) for path in (run / "artifacts" / "measure").rglob("*.json")]
    assert sorted(published, key=str) == sorted(original, key=str)
    for record in published:
        del record["sha256"]
        Record.model_validate(record)


def test_what_a_set_says_about_itself(run: Path) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=run, capture_output=True, text=True, check=True
    ).stdout.strip()
    publish("first")
    (found,) = read_sets(run / paths.PUBLISHED)
    assert (found.profile, found.method, found.device, found.torch) == ("cpu", "lora", "AMD EPYC 7B13", "2.13.0")
    assert found.revision == head
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.committed)
    assert set(found.files) == FILES - {"set.json", "checksums.json"}
    # figures are counted once, although some cells serve several rows
    lines = list(csv.DictReader((run / "results" / "results.csv").read_text().splitlines()))
    figures = {(line["axis"], line["cell"], line["metric"]): line for line in lines}.values()
    assert found.cells == len({(line["axis"], line["cell"]) for line in lines})
    assert found.measured == sum(line["source"] == "measured" for line in figures)
    assert found.modelled == sum(line["source"] == "modelled" for line in figures)
    assert found.missing == sum(line["value"] == "" for line in figures)
    assert found.missing + found.measured + found.modelled == len(figures)


def measured_at(path: Path, commit: str, *, changed: bool = False) -> None:
    record = read_record(path)
    known = record.provenance.model_copy(update={"git_revision": commit, "git_dirty": changed})
    write_record(path, record.model_copy(update={"provenance": known}))


def test_a_set_is_of_the_commit_that_was_measured(run: Path) -> None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=run, capture_output=True, text=True, check=True).stdout.strip()

    measured = git("rev-parse", "HEAD")
    for path in (run / "artifacts" / "measure").rglob("*.json"):
        measured_at(path, measured)
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "--allow-empty", "-m", "prose")
    publish("first")
    (found,) = read_sets(run / paths.PUBLISHED)
    assert (found.revision, found.revision_dirty) == (measured, False)
    command = (run / paths.PUBLISHED / "first" / "reproduce.sh").read_text()
    assert f'"$copy" {measured}' in command
    assert "several revisions" not in command


def test_the_commit_is_that_of_the_run_wherever_it_is_published_from(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (run / "artifacts" / "measure").rglob("*.json"):
        measured_at(path, "f0" * 20)  # which no repository has
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    publish("first", run)
    (found,) = read_sets(run / paths.PUBLISHED)
    assert (found.revision, found.revision_dirty) == git_state(run)
    assert found.revision is not None
    assert found.committed is not None


def test_without_git_a_set_is_of_no_commit(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(run))
    publish("first")
    (found,) = read_sets(run / paths.PUBLISHED)
    assert (found.revision, found.committed) == (None, None)


def test_a_set_that_was_measured_in_parts_names_all_its_commits(run: Path) -> None:
    first, *others = sorted((run / "artifacts" / "measure").rglob("*.json"))
    measured_at(first, "f0" * 20, changed=True)
    folder = publish("first").folder
    assert read_revisions(folder) == [
        Revision("2b6fdca1" * 5, False, len(others)), Revision("f0" * 20, True, 1)
    ]  # fmt: skip
    comment = f"several revisions: {'2b6fdca1' * 5} ({len(others)}), {'f0' * 20} with changes (1).\n# This repeats all cells at the one"
    assert comment in (folder / "reproduce.sh").read_text()
    page = (folder.parent / "index.html").read_text(encoding="utf-8")
    assert (
        page.index("<code>2b6fdca12b6f</code>")
        < page.index(f"{len(others)} records")
        < page.index("<code>f0f0f0f0f0f0</code>")
    )


def test_publishing_again_replaces_and_gives_the_same_bytes(run: Path) -> None:
    def content():
        return {path: path.read_bytes() for path in sorted((run / paths.PUBLISHED).rglob("*")) if path.is_file()}

    publish("first")
    folder = run / paths.PUBLISHED / "first"
    (folder / "stale.txt").write_text("x")  # of an earlier version, which its checksums know
    write_json(folder / "checksums.json", {**read_json(folder / "checksums.json"), "stale.txt": "0" * 64})
    before = content()
    assert publish("first").replaced
    after = content()
    changed = {"stale.txt", "checksums.json"}
    assert after.keys() == {path for path in before if path.name != "stale.txt"}
    assert all(after[path] == text for path, text in before.items() if path.name not in changed)
    assert "stale.txt" not in read_json(folder / "checksums.json")
    assert not [path for path in (run / paths.PUBLISHED).iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_published_set_is_not_replaced(run: Path, kind: str) -> None:
    place = run / paths.PUBLISHED / "notes"
    own = place / "mine.txt" if kind == "folder" else place
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes exists and is no published set: choose another name"):
        publish("notes")
    assert own.read_text() == "mine"


def test_the_default_name_is_the_profile_and_the_device(run: Path) -> None:
    assert publish().folder.name == "cpu-amd-epyc-7b13"
    cpu = {"model": "Intel(R) Xeon(R) Processor @ 2.80GHz"}
    assert device({"cpu": cpu, "gpus": []}) == "Intel Xeon Processor @ 2.80GHz"
    assert device({"cpu": cpu, "gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}) == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/x", ".hidden", "-x", "a b", "a\n", "é", "x" * 101, "a;b", "$(a)", "a:b"],
)
def test_names_that_are_no_folders(run: Path, name: str) -> None:
    with pytest.raises(ParameterError, match="cannot be a folder") as caught:
        publish(name)
    assert "\n" not in str(caught.value)
    assert not (run / paths.PUBLISHED).exists()


def test_the_index_lists_the_sets_with_relative_links_that_lead_somewhere(run: Path) -> None:
    publish("first")
    publish("second.1")
    index = run / paths.PUBLISHED / "index.html"
    page = index.read_text(encoding="utf-8")
    links = Links(page)
    assert "script" not in links.tags
    assert "default-src 'none'" in page
    local = [target for target in links.targets if not target.startswith(("data:", "#"))]
    assert {"first/index.html", "second.1/index.html", "first/records.json", "second.1/dvc.lock"} <= set(local)
    for target in local:
        assert not re.match(r"\w+:|/", target), target
        assert (index.parent / unquote(target)).is_file(), target
    assert write_index(index.parent) == 2
    assert index.read_text(encoding="utf-8") == page


def test_hostile_descriptions_are_escaped() -> None:
    hostile = "<script>alert(1)</script>\"'{{7*1913}}"
    page = render_index(
        [
            PublishedSet(
                name="a", profile=hostile, method=hostile, device=hostile, torch=hostile, efficientllm=hostile, revision="1a" * 20,
                revision_dirty=True, committed=hostile, cells=1, failed=1, measured=1, modelled=1, missing=1, files=[hostile],
                command=hostile,
            )
        ],
        {"a": [Revision("1a" * 20, True, 2)]},
    )  # fmt: skip
    assert "<script" not in page
    assert "script" not in Links(page).tags
    assert "13391" not in page


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "dvc.lock").unlink(), "dvc.lock knows of no finished run: run `dvc repro`, then publish"),
        (lambda run: (run / "dvc.lock").write_text("schema: '2.0'\n"), "knows of no finished run"),
        (lambda run: (run / "reports/index.html").unlink(), "reports/index.html is not the one that dvc.lock describes"),
        (lambda run: (run / "reports/index.html").write_text("x"), "reports/index.html is not the one"),
        (lambda run: (run / "hardware.json").write_text("{}"), "hardware.json describes no machine"),
        (
            lambda run: write_json(run / "hardware.json", read_json(run / "hardware.json") | {"ram_limit_gib": 1}),
            "hardware.json is not the one",
        ),
        (lambda run: (run / "results/metrics.json").write_text("{}"), "results/metrics.json is not the one"),
        (lambda run: (run / "results/results.csv").write_text("x"), "does not match the records"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_finished_or_does_not_belong_together(run: Path, damage, message: str) -> None:
    damage(run)
    with pytest.raises(ArtifactError) as caught:
        publish("first")
    assert message in str(caught.value)
    assert not (run / paths.PUBLISHED).exists()


def test_a_measurement_that_is_newer_than_the_report(run: Path) -> None:
    path = next((run / "artifacts" / "measure" / "tune").glob("*.json"))
    record = read_record(path)
    latency = record.metrics["average_latency"]
    write_record(
        path,
        record.model_copy(
            update={
                "metrics": record.metrics
                | {
                    "average_latency": latency.model_copy(
                        update={"value": 2 * latency.value, "ci_high": None, "ci_low": None}
                    )
                }
            }
        ),
    )
    with pytest.raises(ArtifactError, match="does not match the records"):
        publish("first")


def test_the_command_repeats_the_run_beside_the_clone(run: Path, tmp_path: Path) -> None:
    (run / ".gitignore").write_text("/artifacts\n/results\n")
    (run / "Makefile").write_text("repro:\n\tcp params.yaml made\n")
    for command in (["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "code"]):
        subprocess.run(["git", *command], cwd=run, check=True)
    (run / "params.yaml").write_text("# changed since\n" + (run / "params.yaml").read_text())
    folder = publish("first").folder
    assert "was not a commit as it stands" in (folder / "reproduce.sh").read_text()
    done = subprocess.run(
        ["sh", str(run / folder / "reproduce.sh")], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "efficientllm-first"
    assert (copy / "made").read_text().startswith("# changed since")
    assert (copy / "profiles" / "cpu.yaml").is_file()


def test_the_command_takes_over_the_users_own_files(run: Path, tmp_path: Path) -> None:
    (run / ".gitignore").write_text("/artifacts\n/results\n/own texts\n/tokens.json\n")
    (run / "Makefile").write_text("repro:\n\tcat 'own texts/deep/a.txt' tokens.json > made\n")
    for command in (["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "code"]):
        subprocess.run(["git", *command], cwd=run, check=True)
    configuration = config.load(run)
    data = configuration.profile.data.model_copy(
        update={
            "source": "files",
            "files": FilesSource(paths=["own texts/**/*.txt", "/elsewhere/*.txt"], text_field="text", licence="own"),
            "tokenizer": TokenizerSettings(train_vocabulary_size=None, path="tokens.json"),
        }
    )
    profile = configuration.profile.model_copy(update={"data": data})
    folder = run / "reports" / "published" / "own"
    folder.mkdir(parents=True)
    for name in ("params.yaml", "profile.yaml"):
        (folder / name).write_text("")
    (folder / "reproduce.sh").write_text(_command("own", replace(configuration, profile=profile), "HEAD", False, []))

    def repeated() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(folder / "reproduce.sh")], cwd="/", capture_output=True, text=True, check=False
        )

    copy = tmp_path / "efficientllm-own"
    (run / "tokens.json").write_text("tokens")
    failed = repeated()
    assert (failed.returncode, copy.exists()) == (1, False)
    assert "own texts is missing" in failed.stderr
    (run / "own texts" / "deep").mkdir(parents=True)
    (run / "own texts" / "deep" / "a.txt").write_text("text, ")
    done = repeated()
    assert done.returncode == 0, done.stderr
    assert (copy / "made").read_text() == "text, tokens"


def test_a_set_with_files_of_somebody_elses_is_not_replaced(run: Path) -> None:
    folder = publish("first").folder
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds 'notes\.txt', which is no file of the set"):
        publish("first")
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    assert publish("first").replaced


def test_the_index_in_this_repository_is_current() -> None:
    def content(page: str) -> str:
        return re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)  # whose style may be of its day

    published = ROOT / paths.PUBLISHED
    found = (published / "index.html").read_text(encoding="utf-8")
    sets = read_sets(published)
    revisions = {entry.name: read_revisions(published / entry.name) for entry in sets}
    assert content(found) == content(render_index(sets, revisions)), "run: efficientllm publish --index"


def test_git_keeps_published_sets() -> None:
    for name in (*FILES, "more.json"):
        path = f"reports/published/a-set/{name}"
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode
        assert ignored == 1, f"git ignores {path}"


def test_the_sites_root_leads_to_the_list_of_sets(tmp_path: Path) -> None:
    workflow = YAML(typ="safe").load((ROOT / ".github" / "workflows" / "pages.yaml").read_text())
    steps = workflow["jobs"]["deploy"]["steps"]
    assert next(step["with"]["path"] for step in steps if "upload-pages-artifact" in step.get("uses", "")) == "reports"
    (command,) = (step["run"] for step in steps if "run" in step)
    (tmp_path / "reports").mkdir()
    for _ in range(2):
        subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    page = (tmp_path / "reports" / "index.html").read_text()
    assert Links(page).targets == ["published/"]
    assert 'content="0; url=published/"' in page
    (tmp_path / "reports" / "index.html").write_text("the report")
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    assert (tmp_path / "reports" / "index.html").read_text() == "the report"
