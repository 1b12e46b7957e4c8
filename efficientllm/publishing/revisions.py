"""The commits that the records of a published set were measured at, as the records themselves say."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from efficientllm.errors import ArtifactError
from efficientllm.files import read_json

RECORDS_FILE = "records.json"
REVISION = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Revision:
    """A commit that records were measured at.

    Args:
        commit: Its hash; None where the records do not tell.
        changed: Whether the code differed from it.
        records: How many records there are of it.
    """

    commit: str | None
    changed: bool
    records: int


class _Provenance(BaseModel):
    git_revision: str | None = None
    git_dirty: bool | None = None


class _Record(BaseModel):
    provenance: _Provenance | None = None  # a replica has none


_RECORDS = TypeAdapter(list[_Record])


def read_revisions(folder: Path) -> list[Revision]:
    """Reads what a set's records were measured at, most records first.

    Args:
        folder: The set's folder.

    Raises:
        ArtifactError: The set's records are missing or damaged.
    """
    path = folder / RECORDS_FILE
    remedy = f"publish {folder.name} again, or delete {folder}"
    try:
        records = _RECORDS.validate_python(read_json(path, remedy))
    except ValidationError as error:
        raise ArtifactError(f"{path} is no list of records: {remedy}") from error
    found = Counter(
        (_commit(record.provenance.git_revision), bool(record.provenance.git_dirty))
        for record in records
        if record.provenance is not None
    )
    return [Revision(commit, changed, count) for (commit, changed), count in found.most_common()]


def _commit(revision: str | None) -> str | None:
    return revision if revision is not None and REVISION.fullmatch(revision) else None
