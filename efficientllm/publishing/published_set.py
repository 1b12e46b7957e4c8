"""What a published folder says about itself, and the page that lists all of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientllm.config.faults import first_fault
from efficientllm.errors import ArtifactError
from efficientllm.files import check_directory, read_json, write_text
from efficientllm.publishing.revisions import Revision, read_revisions

SET_FILE = "set.json"
REPORT_FILE = "index.html"
INDEX_FILE = "index.html"
# pydantic looks whether a text is Unicode, and so can be written, only where it is constrained
_Text = Annotated[str, Field(min_length=0)]
_Count = Annotated[int, Field(ge=0)]


class PublishedSet(BaseModel):
    """A published run. `revision` is the commit that `command` checks out, `committed` that commit's day.

    What the records were measured at, they say themselves: see `read_revisions`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    profile: _Text
    method: _Text
    device: _Text
    torch: _Text
    efficientllm: _Text
    revision: str | None = Field(pattern=r"^[0-9a-f]{40}$")
    revision_dirty: bool | None
    committed: _Text | None
    cells: _Count
    failed: _Count
    measured: _Count
    modelled: _Count
    missing: _Count
    files: list[_Text]
    command: _Text


def read_sets(published: Path) -> list[PublishedSet]:
    """Reads what the published folders say about themselves, in the order of their names.

    Args:
        published: The folder that holds them.

    Raises:
        ArtifactError: A folder does not describe itself, describes another, or has a file that does not fit its checksum.
    """
    folders = sorted(entry for entry in published.glob("*") if entry.is_dir() and not entry.name.startswith("."))
    return [_read_set(folder) for folder in folders]


def _read_set(folder: Path) -> PublishedSet:
    path = folder / SET_FILE
    if not path.is_file():
        raise ArtifactError(
            f"{folder} is no published set, since it has no {SET_FILE}: move it elsewhere, or delete it"
        )
    remedy = f"publish {folder.name} again, or delete {folder}"
    try:
        found = PublishedSet.model_validate(read_json(path, remedy))
    except ValidationError as error:
        raise ArtifactError(f"{path} does not describe a published set ({first_fault(error)}): {remedy}") from error
    if found.name != folder.name:
        raise ArtifactError(f"{path} describes {found.name!r}: publish again instead of renaming the folder")
    check_directory(folder, remedy)
    return found


def write_index(published: Path) -> int:
    """Writes the page that lists all published sets; returns their number.

    Raises:
        ArtifactError: A published folder is damaged, or there is none.
    """
    sets = read_sets(published)
    if not sets:
        raise ArtifactError(
            f"{published} holds no published set to list: run it in the root of a clone that has one, or publish a run first"
        )
    revisions = {entry.name: read_revisions(published / entry.name) for entry in sets}
    write_text(published / INDEX_FILE, render_index(sets, revisions))
    return len(sets)


def render_index(sets: Sequence[PublishedSet], revisions: Mapping[str, Sequence[Revision]]) -> str:
    """Renders the page that lists published sets; all links are relative.

    Args:
        sets: What the sets say about themselves; at least one.
        revisions: By the name of each set what its records were measured at.
    """
    from efficientllm.pages.page import render_page

    return render_page("published", sets=sets, revisions=revisions, report=REPORT_FILE)
