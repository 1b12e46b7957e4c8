"""Records that were measured on one machine, for another of the same kind.

DVC keeps for every finished stage a file that says what the stage depended on (its run cache). An archive holds those of
the measuring stages, and the records that belong to them. Importing puts both into the cache and no more: `dvc repro` then
takes a record over only where the hardware's description, code, parameters, data and weights are the same to the
byte, and measures everything else itself.
"""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from efficientllm import paths
from efficientllm.config.load import read_yaml
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.files import write_bytes

CACHE = Path(".dvc") / "cache"
_MEASURING = re.compile(r"python -m stages\.(measure|replicate) ")
_RUN = re.compile(r"runs/([0-9a-f]{2})/(\1[0-9a-f]{62})/[0-9a-f]{64}")
_OBJECT = re.compile(r"files/md5/([0-9a-f]{2})/([0-9a-f]{30})")


@dataclass(frozen=True)
class Transfer:
    """What an archive held.

    Args:
        records: How many records.
        of_this_machine: How many of them were measured on hardware that is described as this machine's is.
    """

    records: int
    of_this_machine: int


def export_records(destination: Path, root: Path = Path()) -> int:
    """Writes the measured records of this clone's cache, with what they depended on, to a tar archive.

    Args:
        destination: The archive.
        root: The repository's root.

    Returns:
        Number of records.

    Raises:
        ArtifactError: The cache holds no record.
    """
    cache = root / CACHE
    members: dict[str, bytes] = {}
    for run in sorted((cache / "runs").glob("*/*/*")):
        if not _MEASURING.match(str(_stage(run).get("cmd"))):
            continue
        outputs = [_object_name(out["md5"]) for out in _stage(run)["outs"]]
        if all((cache / name).is_file() for name in outputs):  # an evicted one is of no use
            members |= {name: (cache / name).read_bytes() for name in outputs}
            members[run.relative_to(cache).as_posix()] = run.read_bytes()
    count = sum(name.startswith("runs/") for name in members)
    if not count:
        raise ArtifactError(f"{cache} holds no measured record: run `dvc repro` first")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, payload in sorted(members.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            archive.addfile(entry, io.BytesIO(payload))
    write_bytes(destination, content.getvalue())
    return count


def import_records(source: Path, root: Path = Path()) -> Transfer:
    """Puts the records of an archive into this clone's cache.

    Args:
        source: What `export_records` wrote.
        root: The repository's root.

    Raises:
        ParameterError: The file does not exist.
        ArtifactError: It is damaged, or holds anything but records and what they depended on; then nothing is imported.
    """
    if not source.is_file():
        raise ParameterError(f"{source} does not exist")
    members = dict(_members(source))
    hardware = root / paths.HARDWARE
    own = hashlib.md5(hardware.read_bytes(), usedforsecurity=False).hexdigest() if hardware.exists() else None
    runs = {name: _described(name, content, source) for name, content in members.items() if _RUN.fullmatch(name)}
    wanted = {_object_name(out["md5"]) for stage in runs.values() for out in stage["outs"]}
    if wanted != members.keys() - runs.keys():
        raise ArtifactError(f"{source} is incomplete, or holds files that are no records: export the records anew")
    # records first: a run without its record would be worse than a record without its run
    for name in sorted(members):
        target = root / CACHE / name
        if not target.exists():
            write_bytes(target, members[name])
    matching = sum(
        any(dependency["path"] == str(paths.HARDWARE) and dependency.get("md5") == own for dependency in stage["deps"])
        for stage in runs.values()
    )
    return Transfer(len(runs), matching)


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(source, mode="r:gz") as archive:
            for entry in archive:
                stream = archive.extractfile(entry) if entry.isfile() else None
                found = _OBJECT.fullmatch(entry.name)
                if stream is None or not (found or _RUN.fullmatch(entry.name)):
                    raise ArtifactError(f"{source} holds {entry.name!r}, which is no record: nothing is imported")
                content = stream.read()
                if found and hashlib.md5(content, usedforsecurity=False).hexdigest() != found[1] + found[2]:
                    raise ArtifactError(f"{source}: {entry.name} is damaged: nothing is imported")
                yield entry.name, content
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArtifactError(f"{source} is no archive of records, or a damaged one ({error})") from error


def _described(name: str, content: bytes, source: Path) -> dict[str, Any]:
    """Reads what a run depended on, and makes sure that it is a measuring stage that yields records alone."""
    stage = _parsed(content, f"{source}: {name}")
    outputs = [PurePosixPath(out["path"]) for out in stage["outs"]]
    inside = all(output.is_relative_to(paths.MEASURE.as_posix()) and ".." not in output.parts for output in outputs)
    if not _MEASURING.match(str(stage["cmd"])) or not inside:
        raise ArtifactError(f"{source}: {name} describes something else than a measurement: nothing is imported")
    return stage


def _stage(run: Path) -> dict[str, Any]:
    content = read_yaml(run)
    return content if isinstance(content, dict) else {}


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        stage: dict[str, Any] = YAML(typ="safe").load(content)
        for part in ("cmd", "deps", "outs"):
            stage[part]
        for out in stage["outs"]:
            _object_name(out["md5"])
    except (YAMLError, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise ArtifactError(f"{where} is damaged ({error}): nothing is imported") from error
    return stage


def _object_name(md5: str) -> str:
    name = f"files/md5/{md5[:2]}/{md5[2:]}"
    if not _OBJECT.fullmatch(name):
        raise ValueError(f"{md5!r} is no hash of a record")
    return name
