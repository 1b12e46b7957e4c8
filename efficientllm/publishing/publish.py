"""Copies a finished run into a folder that can be kept in Git and served as it is."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientllm import __version__, config, paths, pipeline
from efficientllm.data.sources.files import fixed_part
from efficientllm.errors import ArtifactError, ParameterError, shown
from efficientllm.files import CHECKSUMS_FILE, read_json, size_on_disk, whole_directory, write_json, write_text
from efficientllm.measurement.provenance import git_state
from efficientllm.publishing.lock import check_lock
from efficientllm.publishing.published_set import REPORT_FILE, SET_FILE, PublishedSet, write_index
from efficientllm.publishing.revisions import RECORDS_FILE, REVISION, Revision, read_revisions
from efficientllm.ranking.results import RANKING_FILE, RESULTS_FILE, SUMMARY_FILE
from efficientllm.reporting.evidence import Evidence, collect
from efficientllm.reporting.text import identifier

PROFILE_FILE = "profile.yaml"
LOCK_FILE = "dvc.lock"
COMMAND_FILE = "reproduce.sh"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Publication:
    """What `publish` did.

    Args:
        folder: The published folder.
        files: How many files it has.
        size: Their bytes.
        replaced: Whether a folder of this name was there before.
        index: The page that lists all published sets.
        sets: How many there are.
    """

    folder: Path
    files: int
    size: int
    replaced: bool
    index: Path
    sets: int


def publish(name: str | None = None, root: Path = Path()) -> Publication:
    """Publishes the run in the working directory: report, tables, records, and what they depended on.

    Args:
        name: Name of the folder; the profile and the device where it is None.
        root: The repository's root.

    Raises:
        ParameterError: The name is no name of a folder.
        ArtifactError: The run is not finished, its files do not belong together, or the folder holds something else.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise ParameterError(
            f"the name {name!r} cannot be a folder: use up to 100 letters, digits, '-', '_' and '.', a letter or digit first"
        )
    configuration = config.load(root)
    evidence = collect(configuration, root)
    locked = check_lock(configuration, root)
    profile = configuration.parameters.profile
    chosen = name or identifier(profile, device(evidence.hardware))
    published = root / paths.PUBLISHED
    folder = published / chosen
    replaced = folder.exists()
    if replaced and not (folder / SET_FILE).is_file():
        raise ArtifactError(f"{folder} exists and is no published set: choose another name, or move it elsewhere")
    if replaced and (folder / CHECKSUMS_FILE).is_file():
        known = {*read_json(folder / CHECKSUMS_FILE), CHECKSUMS_FILE}
        if own := sorted(path.name for path in folder.iterdir() if path.name not in known):
            raise ArtifactError(
                f"{folder} holds {shown(own[0])}, which is no file of the set and would be lost: move it elsewhere"
            )
    copied = {
        paths.REPORT: REPORT_FILE,
        paths.RESULTS / RESULTS_FILE: RESULTS_FILE,
        paths.RESULTS / RANKING_FILE: RANKING_FILE,
        paths.RESULTS / SUMMARY_FILE: SUMMARY_FILE,
        paths.HARDWARE: paths.HARDWARE.name,
        paths.PARAMETERS: paths.PARAMETERS.name,
        paths.PROFILES / f"{profile}.yaml": PROFILE_FILE,
    }
    with whole_directory(folder) as target:
        for source, copy in copied.items():
            shutil.copyfile(root / source, target / copy)
        write_text(target / RECORDS_FILE, _records(configuration, root))
        pipeline.write_lock(target / LOCK_FILE, locked)
        revision, dirty = _measured_code(evidence, root)
        write_text(target / COMMAND_FILE, _command(chosen, configuration, revision, dirty, read_revisions(target)))
        write_json(
            target / SET_FILE,
            _description(
                chosen, evidence, revision, dirty, _day(revision, root),
                [*copied.values(), RECORDS_FILE, LOCK_FILE, COMMAND_FILE],
            ).model_dump(),
        )  # fmt: skip
    return Publication(
        folder, sum(1 for _ in folder.iterdir()), size_on_disk(folder), replaced, published / REPORT_FILE, write_index(published)
    )  # fmt: skip


def device(hardware: dict[str, Any]) -> str:
    """Names the device of a run: its first GPU, else its processor, without trade marks."""
    name = str(hardware["gpus"][0]["name"] if hardware.get("gpus") else hardware["cpu"]["model"])
    return " ".join(re.sub(r"\((R|TM|C)\)|®|™", " ", name, flags=re.IGNORECASE).split())


def _measured_code(evidence: Evidence, root: Path) -> tuple[str | None, bool | None]:
    """The commit that the records were measured at, and whether code differed from it; prose may have been committed since.

    The current one where they are of several, or of one that this repository does not have.
    """
    found = {(record.provenance.git_revision, record.provenance.git_dirty) for record in evidence.records.values()}
    measured = next(iter(found))
    known = measured[0] is not None and REVISION.fullmatch(measured[0]) and _day(measured[0], root) is not None
    return measured if len(found) == 1 and known else git_state(root)


def _records(configuration: config.Configuration, root: Path) -> str:
    """All records of the run's cells and their replicas as one JSON list, a record on each line."""
    files = dict.fromkeys(paths.record(row.axis, row.cell) for row in configuration.rows())
    further = [paths.replica(axis, cell, seed) for axis, cell, seed in configuration.replicas()]
    lines = [
        json.dumps(read_json(root / path), sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        for path in (*files, *further)
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _own_files(configuration: config.Configuration) -> list[str]:
    """What the run read from its folder that Git may not have: data, a tokenizer, bases; what it made itself left out."""
    data = configuration.profile.data
    named = [data.tokenizer.path, data.task.path, *configuration.parameters.bases.values()]
    if data.source == "files" and data.files is not None:
        named += data.files.paths
    found: dict[str, None] = {}
    for fixed in (fixed_part(name) for name in named if name is not None):
        if not fixed.is_absolute() and fixed.parts and not fixed.is_relative_to(paths.ARTIFACTS):
            found[fixed.as_posix()] = None
    return list(found)


def _command(
    name: str,
    configuration: config.Configuration,
    revision: str | None,
    dirty: bool | None,
    measured: Sequence[Revision],
) -> str:
    notes, needed, copied = "", "", ""
    if len(measured) > 1:
        parts = ", ".join(
            f"{part.commit or 'not known'}{' with changes' if part.changed else ''} ({part.records})"
            for part in measured
        )
        notes += f"# Its records were measured at several revisions: {parts}.\n"
        notes += "# This repeats all cells at the one commit that it checks out.\n"
    if revision is None or dirty:
        notes += "# The run's code was not a commit as it stands, so another run may differ.\n"
    if own := " ".join(shlex.quote(path) for path in _own_files(configuration)):
        needed = f"""\
for own in {own}; do
    if [ ! -e "$clone/$own" ]; then
        echo "$clone/$own is missing, which {paths.PARAMETERS.name} or the profile names: put it there" >&2
        exit 1
    fi
done
"""
        copied = f"""\
for own in {own}; do
    if [ ! -e "$own" ]; then
        mkdir -p "$(dirname "$own")"
        cp -R "$clone/$own" "$own"
    fi
done
"""
    return f"""\
#!/bin/sh
# Repeats this run beside the clone that holds this folder. What depends on the machine is measured anew.
{notes}set -eu
here=$(cd "$(dirname "$0")" && pwd)
clone=$(git -C "$here" rev-parse --show-toplevel)
copy=$clone/../efficientllm-{name}
{needed}git -C "$here" worktree add --detach "$copy" {revision or "HEAD"}
cd "$copy"
cp "$here/{paths.PARAMETERS.name}" {paths.PARAMETERS}
cp "$here/{PROFILE_FILE}" {shlex.quote(f"{paths.PROFILES / configuration.parameters.profile}.yaml")}
{copied}make repro
"""


def _description(
    name: str, evidence: Evidence, revision: str | None, dirty: bool | None, committed: str | None, files: list[str]
) -> PublishedSet:
    results = {(result.axis, result.cell, result.metric): result for result in evidence.results}.values()
    versions = {record.provenance.versions.get("torch") for record in evidence.records.values()} - {None}
    return PublishedSet(
        name=name,
        profile=evidence.profile,
        method=evidence.method,
        device=device(evidence.hardware),
        torch=", ".join(sorted(str(version) for version in versions)) or "not known",
        efficientllm=__version__,
        revision=revision,
        revision_dirty=dirty,
        committed=committed,
        cells=len(evidence.records),
        failed=sum(record.status == "failed" for record in evidence.records.values()),
        measured=sum(result.source == "measured" for result in results if result.value is not None),
        modelled=sum(result.source == "modelled" for result in results if result.value is not None),
        missing=sum(result.value is None for result in results),
        files=sorted(files),
        command=f"sh {(paths.PUBLISHED / name / COMMAND_FILE).as_posix()}",
    )


def _day(revision: str | None, root: Path) -> str | None:
    """The day of a commit; None where git does not know it, or is missing."""
    if revision is None:
        return None
    command = ["git", "show", "-s", "--format=%cs", revision]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (subprocess.SubprocessError, OSError):
        return None
    return found.stdout.strip() or None
