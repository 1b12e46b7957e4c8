"""What a published folder says about itself, and the page that lists all of them."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientllm.errors import ArtifactError
from efficientllm.files import read_json, write_text

SET_FILE = "set.json"
REPORT_FILE = "index.html"
INDEX_FILE = "index.html"


class PublishedSet(BaseModel):
    """A published run. `revision` is the commit that was checked out when it was published, `committed` that commit's day."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    profile: str
    method: str
    device: str
    torch: str
    efficientllm: str
    revision: str | None
    revision_dirty: bool | None
    committed: str | None
    cells: int
    failed: int
    measured: int
    modelled: int
    missing: int
    files: list[str]
    command: str


def read_sets(published: Path) -> list[PublishedSet]:
    """Reads what the published folders say about themselves, in the order of their names.

    Args:
        published: The folder that holds them.

    Raises:
        ArtifactError: A folder does not describe itself, or describes another.
    """
    sets = []
    for folder in sorted(entry for entry in published.glob("*") if entry.is_dir() and not entry.name.startswith(".")):
        path = folder / SET_FILE
        try:
            found = PublishedSet.model_validate(read_json(path))
        except (ArtifactError, ValidationError) as error:
            raise ArtifactError(
                f"{path} does not describe a published set: delete {folder}, or publish it again"
            ) from error
        if found.name != folder.name:
            raise ArtifactError(f"{path} describes {found.name!r}: publish again instead of renaming the folder")
        sets.append(found)
    return sets


def write_index(published: Path) -> int:
    """Writes the page that lists all published sets; returns their number.

    Raises:
        ArtifactError: A published folder is damaged.
    """
    sets = read_sets(published)
    write_text(published / INDEX_FILE, render_index(sets))
    return len(sets)


def render_index(sets: list[PublishedSet]) -> str:
    """Renders the page that lists published sets; all links are relative."""
    from efficientllm.pages.page import render_page

    return render_page("published", sets=sets, report=REPORT_FILE)
