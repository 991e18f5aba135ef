"""What travels with a job: all that the recipe names, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cuvee.errors import UserError
from services.arms import expand
from services.parcel import PACKAGES, Parcel, chain, pack
from services.recipe import Recipe, load

ROOT = Path(__file__).parents[2]
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
RECIPE = """
version: 1
let: {set: one}
models: {m: {id: models/tiny, template: chat.jinja}, shared: {id: /models/large}}
data:
  pool: {from: data/$set.jsonl, do: [dedup]}
  more: {from: "parts/*.jsonl"}
stages: {sft: {mix: {pool: all, more: all}}}
train: {model: m}
arms: {grid: {set: [one, two]}}
"""


def packed(recipe: Path, here: Path, out: Path, *profiles: str, max_mb: float = 50.0) -> Parcel:
    return pack(recipe, profiles, documents(recipe, *profiles), out, here=here, max_mb=max_mb)


def documents(recipe: Path, *profiles: str) -> list[Recipe]:
    return [arm.document for arm in expand(load(recipe, profiles))]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    for name in ("data/one.jsonl", "data/two.jsonl", "data/three.jsonl", "parts/a.jsonl", "parts/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(ROW)
    (folder / "recipes" / "profiles").mkdir(parents=True)
    (folder / "recipes" / "r.yaml").write_text(RECIPE)
    (folder / "recipes" / "profiles" / "cpu.yaml").write_text("extends: base.yaml\ntrain: {lr: 1e-4}\n")
    (folder / "recipes" / "profiles" / "base.yaml").write_text("train: {epochs: 1}\n")
    (folder / "models" / "tiny" / "__pycache__").mkdir(parents=True)
    (folder / "models" / "tiny" / "config.json").write_text("{}")
    (folder / "models" / "tiny" / "__pycache__" / "x.pyc").write_text("")
    (folder / "chat.jinja").write_text("{{ messages }}")
    (folder / "all").mkdir()  # a word of the language that is also a folder
    (folder / "all" / "large.bin").write_text("x" * 1000)
    return folder


def test_what_the_arms_name_is_sent_in_its_place(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    found = packed(Path("recipes/r.yaml"), here, tmp_path / "out", "cpu")
    assert {name for name, _ in found.files} == {
        "recipes/r.yaml", "recipes/profiles/cpu.yaml", "recipes/profiles/base.yaml", "chat.jinja",
        "data/one.jsonl", "data/two.jsonl", "parts/a.jsonl", "models/tiny/config.json",
    }  # fmt: skip
    assert {p.relative_to(found.folder).as_posix() for p in found.folder.rglob("*") if p.is_file()} == {
        name for name, _ in found.files
    }
    assert found.size == sum(p.stat().st_size for p in found.folder.rglob("*") if p.is_file())
    assert (found.start, found.recipe, found.profiles) == (".", "recipes/r.yaml", ("recipes/profiles/cpu.yaml",))
    assert found.elsewhere == ("/models/large",)


def test_the_copy_is_the_same_recipe(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    found = packed(Path("recipes/r.yaml"), here, tmp_path / "out", "cpu")
    before = load("recipes/r.yaml", ["cpu"])
    monkeypatch.chdir(found.folder)
    assert load(found.recipe, found.profiles).hash == before.hash


def test_a_recipe_from_elsewhere_keeps_its_distance(here: Path, tmp_path: Path) -> None:
    far = tmp_path / "far" / "r.yaml"
    far.parent.mkdir()
    far.write_text("version: 1\ndata: {pool: data/one.jsonl}\nevaluate: {at: []}\n")
    found = packed(far, here, tmp_path / "out")
    assert (found.start, found.recipe) == ("here", "../far/r.yaml")
    assert {name for name, _ in found.files} == {"far/r.yaml", "here/data/one.jsonl"}


def test_too_much_is_refused_with_the_largest_files(here: Path, tmp_path: Path) -> None:
    (here / "data" / "two.jsonl").write_text(ROW * 10_000)
    with pytest.raises(UserError, match=r"the limit is 0.5 MB: data/two.jsonl \(0.9 MB\)"):
        packed(here / "recipes" / "r.yaml", here, tmp_path / "out", max_mb=0.5)


@pytest.mark.parametrize("name", ["evaluation/pool.jsonl", "cuvee/data/pool.jsonl"])
def test_a_folder_that_hides_our_packages_is_refused(name: str, here: Path, tmp_path: Path) -> None:
    (here / name).parent.mkdir(parents=True)
    (here / name).write_text(ROW)
    recipe = here / "r.yaml"
    recipe.write_text(f"version: 1\ndata: {{pool: {name}}}\nevaluate: {{at: []}}\n")
    with pytest.raises(UserError, match=f"{name} would hide Cuvee's own package '{name.split('/')[0]}'"):
        packed(recipe, here, tmp_path / "out")


def test_our_packages_work_from_where_they_are_sent(here: Path, tmp_path: Path) -> None:
    """As on a cluster: a bare interpreter with the packages' folder before everything that is installed."""
    found = packed(here / "recipes" / "r.yaml", here, tmp_path / "out")
    assert [package.name for package in found.packages] == list(PACKAGES)
    folder = found.packages[0].parent
    assert not list(folder.rglob("__pycache__"))
    script = "import services.cli, cuvee, sys; print(services.cli.__file__); services.cli.main(['init', 'new.yaml'])"
    made = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(folder), "PATH": ""}, cwd=tmp_path, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert made.stdout.splitlines()[0] == str(folder / "services" / "cli.py")
    assert (tmp_path / "new.yaml").read_text().startswith("#")


def test_the_folders_hold_what_the_wheel_holds(here: Path, tmp_path: Path) -> None:
    """And the wheel lacks none of the files that are read at run time."""
    found = packed(here / "recipes" / "r.yaml", here, tmp_path / "out")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("cuvee-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    base = found.packages[0].parent
    sent = {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}
    assert sent == inside


def test_a_profile_brings_what_it_extends(here: Path) -> None:
    folder = here / "recipes" / "profiles"
    assert chain(folder / "cpu.yaml") == [folder / "cpu.yaml", folder / "base.yaml"]
