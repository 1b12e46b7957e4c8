"""Records that were measured on one machine, for another of the same kind.

DVC keeps for every finished stage a file that says what the stage depended on (its run cache). An archive holds those of
the measuring stages, and the records that belong to them. Importing puts both into the cache and no more: `dvc repro` then
takes a record over only where the hardware's description, code, parameters, data and weights are the same to the
byte, and measures everything else itself.
"""

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientllm import paths
from efficientllm.cache import dvc_repository, file_md5, md5
from efficientllm.config.faults import first_fault
from efficientllm.errors import ArtifactError, EfficientLLMError, ParameterError, first_line
from efficientllm.files import CHANGED_REMEDY, write_bytes

_MEASURING = re.compile(r"python -m stages\.(measure|replicate) ")
_RUN = re.compile(r"runs/([0-9a-f]{2})/(\1[0-9a-f]{62})/[0-9a-f]{64}")
_OBJECT = re.compile(r"files/md5/([0-9a-f]{2})/([0-9a-f]{30})")
_PARTS = {"cmd", "deps", "outs"}
"""What DVC notes of every stage that it keeps the run of."""
_REFUSED = "nothing is imported: copy the archive again, or export the records anew"
_LARGEST = 16 << 20
"""Bytes of a file in an archive; a record has some 20 kB. An archive may be made so that it unpacks to a thousand times its size."""
_LARGEST_WHOLE = 512 << 20
"""Bytes of an archive, unpacked: it is held in memory, for nothing may be imported before all of it is checked."""


@dataclass(frozen=True)
class Transfer:
    """What an archive held.

    Args:
        records: How many records.
        of_this_machine: How many of them were measured on hardware that is described as this machine's is.
    """

    records: int
    of_this_machine: int


class _Dependency(BaseModel):
    path: str
    md5: str | None = None


class _Output(BaseModel):
    """A record; what DVC might note besides is of folders, of executable files and of other places."""

    model_config = ConfigDict(extra="forbid")

    path: str
    md5: str = Field(pattern="^[0-9a-f]{32}$")
    hash: Literal["md5"] = "md5"
    size: int | None = None


class _Stage(BaseModel):
    """What DVC noted of a measuring stage that ran."""

    cmd: str
    deps: list[_Dependency]
    outs: list[_Output] = Field(min_length=1)


def export_records(destination: Path, root: Path = Path()) -> int:
    """Writes the measured records of this clone's cache, with what they depended on, to a tar archive.

    Args:
        destination: The archive; one that is there already is replaced, anything else is not.
        root: The repository's root.

    Returns:
        Number of records.

    Raises:
        ParameterError: The destination is there, and is no archive of records.
        ArtifactError: The root is no DVC repository's, or its cache is damaged, or holds no record.
    """
    cache = _cache(root)
    _check_replaceable(destination)
    members: dict[str, bytes] = {}
    for run in sorted((cache / "runs").glob("*/*/*")):
        content = run.read_bytes()
        stage = _stage(content, str(run), "delete it, and its record is left out")
        if stage is None:
            continue
        outputs = [_object_name(out.md5) for out in stage.outs]
        if all((cache / name).is_file() for name in outputs):  # an evicted one is of no use
            members |= {name: _whole(cache, name) for name in outputs}
            members[run.relative_to(cache).as_posix()] = content
    count = sum(name.startswith("runs/") for name in members)
    if not count:
        raise ArtifactError(f"{cache} holds no measured record: run `dvc repro` first")
    archived = io.BytesIO()
    with tarfile.open(fileobj=archived, mode="w:gz") as archive:
        for name, payload in sorted(members.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            archive.addfile(entry, io.BytesIO(payload))
    write_bytes(destination.resolve(), archived.getvalue())  # a link stays one
    return count


def import_records(source: Path, root: Path = Path()) -> Transfer:
    """Puts the records of an archive into this clone's cache.

    Args:
        source: What `export_records` wrote.
        root: The repository's root.

    Raises:
        ParameterError: The source is no file.
        ArtifactError: The root is no DVC repository's, or the archive is damaged, or holds anything but records and what they
            depended on; then nothing is imported.
    """
    cache = _cache(root)
    members = dict(_members(source))
    hardware = root / paths.HARDWARE
    own = file_md5(hardware) if hardware.exists() else None
    runs = {name: _described(name, content, source) for name, content in members.items() if _RUN.fullmatch(name)}
    if not runs:
        raise ArtifactError(f"{source} holds no record: export the records anew")
    wanted = {_object_name(out.md5) for stage in runs.values() for out in stage.outs}
    if wanted != members.keys() - runs.keys():
        raise ArtifactError(f"{source} is incomplete, or holds files that are no records: export the records anew")
    # records first: a run without its record would be worse than a record without its run
    for name in sorted(members):
        target = cache / name
        if not target.exists():
            write_bytes(target, members[name])
    matching = sum(
        any(dependency.path == str(paths.HARDWARE) and dependency.md5 == own for dependency in stage.deps)
        for stage in runs.values()
    )
    return Transfer(len(runs), matching)


def _cache(root: Path) -> Path:
    """The folder of DVC's cache, which may lie anywhere."""
    if not (root / ".dvc").is_dir():  # DVC would go on in the folders above, which have a hardware.json of their own
        raise ArtifactError(f"{root.resolve()} is no root of a DVC repository: run this in the folder of dvc.yaml")
    with dvc_repository(root, f"DVC cannot use the repository in {root.resolve()}") as repository:
        return Path(repository.cache.local_cache_dir)


def _check_replaceable(destination: Path) -> None:
    """Makes sure that nothing but an earlier archive is replaced."""
    if not destination.exists():
        return
    try:
        earlier = any(_RUN.fullmatch(name) for name, _ in _members(destination))
    except EfficientLLMError:
        earlier = False
    if not earlier:
        raise ParameterError(f"{destination} exists and is no archive of records: choose another name")


def _whole(cache: Path, name: str) -> bytes:
    content = (cache / name).read_bytes()
    if not _is_whole(name, content):
        raise ArtifactError(f"{cache / name} is damaged: {CHANGED_REMEDY}")
    return content


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    if not source.exists():
        raise ParameterError(f"{source} does not exist")
    if not source.is_file():
        raise ParameterError(f"{source} is no regular file: name an archive that `efficientllm export-records` wrote")
    try:
        with gzip.open(source) as compressed:
            # to its end: the archive ends before its checksum, and a run has no other
            unpacked = compressed.read(_LARGEST_WHOLE + 1)
        if len(unpacked) > _LARGEST_WHOLE:
            raise ArtifactError(f"{source} unpacks to more than {_LARGEST_WHOLE >> 20} MiB: nothing is imported")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for entry in archive:
                stream = archive.extractfile(entry) if entry.isfile() else None
                if stream is None or not (_OBJECT.fullmatch(entry.name) or _RUN.fullmatch(entry.name)):
                    raise ArtifactError(f"{source} holds {entry.name!r}, which is no record: nothing is imported")
                if entry.size > _LARGEST:
                    raise ArtifactError(f"{source} holds {entry.name!r} of {entry.size:,} bytes: nothing is imported")
                content = stream.read()
                if _OBJECT.fullmatch(entry.name):
                    _check_record(entry.name, content, source)
                yield entry.name, content
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ArtifactError(
            f"{source} is no archive of records, or a damaged one ({first_line(error)}): {_REFUSED}"
        ) from error


def _check_record(name: str, content: bytes, source: Path) -> None:
    if not _is_whole(name, content):
        raise ArtifactError(f"{source}: {name} is damaged: {_REFUSED}")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ArtifactError(f"{source} holds {name!r}, which is no record: nothing is imported")


def _described(name: str, content: bytes, source: Path) -> _Stage:
    """Reads what a run depended on, and makes sure that it is a measuring stage that yields records alone."""
    stage = _stage(content, f"{source}: {name}", _REFUSED)
    outputs = [PurePosixPath(out.path) for out in stage.outs] if stage is not None else []
    inside = all(output.is_relative_to(paths.MEASURE.as_posix()) and ".." not in output.parts for output in outputs)
    if stage is None or not inside:
        raise ArtifactError(f"{source}: {name} describes something else than a measurement: nothing is imported")
    return stage


def _stage(content: bytes, where: str, remedy: str) -> _Stage | None:
    """Reads what DVC noted of a run; None where the stage does not measure."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        noted = YAML(typ="safe", pure=True).load(content.decode())
        if not isinstance(noted, dict) or not noted.keys() >= _PARTS:
            raise ValueError(f"it lacks one of {', '.join(sorted(_PARTS))}")
        # not what str() makes of it, which may be a text without end of a few nested names
        measures = isinstance(noted["cmd"], str) and _MEASURING.match(noted["cmd"])
        return _Stage.model_validate(noted) if measures else None
    except ValidationError as error:
        problem = first_fault(error)
    except (YAMLError, ValueError, KeyError, RecursionError) as error:  # a key error: `!!bool` before what is none
        problem = first_line(error)
    raise ArtifactError(f"{where} is damaged ({problem}): {remedy}")


def _is_whole(name: str, content: bytes) -> bool:
    """Whether a cached file's content is what its name says."""
    return name == _object_name(md5(content))


def _object_name(md5: str) -> str:
    return f"files/md5/{md5[:2]}/{md5[2:]}"
