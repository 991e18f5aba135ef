"""What travels to a cluster with a job: the recipe, its profiles, the files that they name, and our own packages.

A working directory is not sent as it lies there: it tends to hold stores, environments and checkpoints, and Ray sends
whatever it is given. So only what the recipe names is copied to a folder of its own, in its place relative to where the
command was started, and is counted before it is sent. Absolute paths stay what they are: they belong to the cluster.

Our code travels as package folders. A wheel would be the usual form, but Ray installs a wheel together with all that it
requires, on every node and for every job (`pip install` without `--no-deps`), and a wheel that is not installed cannot
hold the templates and tables that we read as files. What is in the folders is what is in the wheel.
"""

from __future__ import annotations

import glob
import importlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.errors import UserError
from services import overlay, yaml_lines
from services.recipe import Recipe

PACKAGES = ("cuvee", "evaluation", "selection", "services", "training")
LEFT_OUT = ("__pycache__", "*.pyc", ".git", ".venv", ".gitignore", ".rayignore", "cuvee-store", "*.egg-info")
"""Never copied. The two ignore files are among them, since Ray would leave out more because of them, in silence."""
MAX_MB = 50.0
_NAMED = 5


@dataclass(frozen=True)
class Parcel:
    """`folder` is what is sent; the command runs in `start`, a folder in it, where `recipe` and `profiles` are.

    `files` are (name, bytes), the largest first. `elsewhere` are paths that must be there on the cluster.
    """

    folder: Path
    packages: tuple[Path, ...]
    start: str
    recipe: str
    profiles: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    elsewhere: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the files, without the packages."""
        return sum(size for _, size in self.files)


def pack(
    path: Path,
    profiles: Sequence[str],
    arms: Sequence[Recipe],
    out: Path,
    *,
    here: Path | None = None,
    max_mb: float = MAX_MB,
) -> Parcel:
    """Copy what a job needs to `out`. `arms` are the recipes of all arms, with their variables put in.

    Raises UserError when it is more than `max_mb`, or would hide our own packages.
    """
    here = (here or Path.cwd()).resolve()
    recipe = (here / path).resolve()
    overlays = [(here / overlay.find_profile(name, path)).resolve() for name in profiles]
    named, elsewhere = files_of(arms, here)
    wanted = sorted({recipe, *(file for each in overlays for file in chain(each)), *named})
    root = Path(os.path.commonpath([here, *(file.parent for file in wanted)]))
    names = {file: file.relative_to(root).as_posix() for file in wanted}
    start = here.relative_to(root).as_posix()
    _check_names(names.values(), "" if start == "." else f"{start}/")
    files = sorted(((name, file.stat().st_size) for file, name in names.items()), key=lambda item: -item[1])
    total = sum(size for _, size in files)
    if total > max_mb * 1e6:
        largest = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in files[:_NAMED])
        raise UserError(
            f"the files that the recipe names are {total / 1e6:.1f} MB; the limit is {max_mb:g} MB: {largest}",
            remedy="put data where the cluster sees it (s3:// or an absolute path), or raise --max-mb",
        )
    folder = out / "work"
    for file, name in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    return Parcel(
        folder=folder,
        packages=tuple(_copy_package(name, out / "packages") for name in PACKAGES),
        start=start,
        recipe=os.path.relpath(recipe, here),
        profiles=tuple(os.path.relpath(file, here) for file in overlays),
        files=tuple(files),
        elsewhere=tuple(elsewhere),
    )


def chain(profile: Path) -> list[Path]:
    """A profile and the files that it extends."""
    found = [profile]
    while parent := yaml_lines.read(found[-1]).tree.get("extends"):
        found.append((found[-1].parent / str(parent)).resolve())
    return found


def files_of(arms: Sequence[Recipe], here: Path) -> tuple[list[Path], list[str]]:
    """(files below relative paths, absolute paths) that the texts of the recipes name.

    Recipes name files in many places (sources, models, templates, prompts, patterns of several files), so every text
    that is the path of something there counts. A bare word counts as a folder only where a path is expected, since
    words of the language may be names of folders too.
    """
    found: dict[Path, None] = {}
    absolute: dict[str, None] = {}
    for key, text in dict.fromkeys(leaf for arm in arms for leaf in _texts(arm.document)):
        if "\n" in text or "://" in text or len(text) > 1000:
            continue
        if Path(text).is_absolute():
            absolute[text] = None
            continue
        place = here / text
        if place.is_dir() and ("/" in text or key in ("from", "path", "id")):
            found |= dict.fromkeys(_below(place))
        elif place.is_file():
            found[place.resolve()] = None
        elif glob.has_magic(text):
            matches = glob.glob(text, root_dir=here, recursive=True)
            found |= {(here / m).resolve(): None for m in sorted(matches) if (here / m).is_file()}
    return list(found), list(absolute)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(the key above it, text) of all texts."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _texts(child, str(name))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _texts(child, key)
    elif isinstance(value, str) and value:
        yield key, value


def _below(folder: Path) -> Iterator[Path]:
    ignore = shutil.ignore_patterns(*LEFT_OUT)
    for base, folders, names in os.walk(folder):
        left_out = ignore(base, [*folders, *names])
        folders[:] = sorted(set(folders) - left_out)
        yield from ((Path(base) / name).resolve() for name in sorted(set(names) - left_out))


def _check_names(names: Iterable[str], start: str) -> None:
    """The folder of the job comes before everything else on Python's path."""
    for name in names:
        for prefix in {"", start}:
            first = name.removeprefix(prefix).split("/")[0] if name.startswith(prefix) else ""
            if first.removesuffix(".py") in PACKAGES:
                raise UserError(
                    f"{name} would hide Cuvee's own package {first.removesuffix('.py')!r} on the cluster",
                    remedy="rename the folder, or give an absolute path that the cluster sees",
                )


def _copy_package(name: str, out: Path) -> Path:
    """One of our packages from where it is imported, be it a checkout or an installation."""
    source = importlib.import_module(name).__file__
    assert source is not None
    target = out / name
    shutil.copytree(Path(source).parent, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return target
