"""The header of a safetensors file, read without loading tensors."""

from pathlib import Path

from efficientllm.errors import ArtifactError

_LENGTH_BYTES = 8


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a safetensors file: its size without the header, whose length its first 8 bytes give.

    Raises:
        ArtifactError: The file is truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES + header:
        raise ArtifactError(f"{path} is truncated: delete it and run `dvc repro` again")
    return size - _LENGTH_BYTES - header
