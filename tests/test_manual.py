"""The manual: its code prints what it says, its commands and links exist, notebooks are run."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from command import ROOT
from manual import (
    MANUAL,
    NOTEBOOKS,
    PAGES,
    README,
    anchors,
    blocks,
    commands,
    fingerprint,
    links,
    markdown,
    refusal,
    run,
)

from flowlab._options import OPTIONS
from flowlab.losses import CATALOGUE
from flowlab.until import Outcome

# What takes longest to compile or to draw; the rest runs by default.
DEAR = {"accelerator", "kernel", "model", "policy", "plots"}


GALLERY = MANUAL / "gallery.md"


def named(page: Path) -> str:
    return page.relative_to(MANUAL).with_suffix("").as_posix()


RUN = [
    pytest.param(page, id=named(page), marks=[pytest.mark.exhaustive] if page.stem in DEAR else [])
    for page in PAGES
    if page != GALLERY
    and any(each.language in ("python", "console") and not each.left_out for each in blocks(page))
]


@pytest.mark.parametrize("page", RUN)
def test_a_page_prints_what_it_says(page, tmp_path, monkeypatch):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    assert run(page) == []


def pictures_of_the_gallery() -> set[str]:
    return {Path(link).name for link in links(markdown(GALLERY)) if link.endswith(".png")}


@pytest.mark.exhaustive
def test_the_gallery_shows_what_its_code_draws(tmp_path, monkeypatch):
    pictures = pictures_of_the_gallery()
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    assert run(GALLERY) == []
    assert {path.name for path in tmp_path.glob("*.png")} == pictures


def test_every_picture_of_the_gallery_is_stored_and_none_else():
    shown = pictures_of_the_gallery()
    stored = {path.name: path.stat().st_size for path in (MANUAL / "gallery").glob("*")}
    assert shown == set(stored)
    assert all(5_000 < size < 150_000 for size in stored.values()), stored


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_every_command_on_a_page_is_one_that_the_command_takes(page):
    assert [refused for refused in map(refusal, commands(page)) if refused] == []


def test_a_wrong_option_on_a_page_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```\nflowlab show x \\\n  --figures m.png   # maps\n```\n", encoding="utf-8")
    (line,) = commands(page)
    assert refusal(line)
    assert not refusal(line.replace("figures", "figure"))


@pytest.mark.parametrize("page", [README, *PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in links(markdown(page)):
        if re.match(r"https?://", link):
            continue
        target, _, heading = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not heading or heading in anchors(markdown(path)), link


def test_every_page_and_notebook_is_reached_from_the_first_page():
    listed, ahead = set(), [MANUAL / "index.md"]
    while ahead:
        page = ahead.pop()
        if page in listed:
            continue
        listed.add(page)
        trees = re.findall(r"^```{toctree}\n(.*?)^```", markdown(page), re.M | re.S)
        entries = [e for tree in trees for e in tree.splitlines() if e and not e.startswith(":")]
        for entry in entries:
            found = page.parent.glob(entry if "*" in entry else f"{entry}.*")
            ahead += [path for path in found if path.suffix in (".md", ".ipynb")]
    assert listed == {*PAGES, *NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_was_run(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    told = "python notebooks/execute.py runs it and stores what it shows"
    assert notebook["metadata"].get("executed") == fingerprint(notebook), told
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_for_no_folder_to_be_run_in(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "../" not in code


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """What writes the reference, without Sphinx."""
    spec = importlib.util.spec_from_file_location("_reference", MANUAL / "_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_command_loss_and_outcome(reference):
    told = "\n".join(reference.commands())
    for name, option in OPTIONS.items():
        flag = option.flag if option.flag.startswith("--") else f"--{name.replace('_', '-')}"
        in_files_alone = name in ("policies", "dtype") or option.flag.isupper()
        assert in_files_alone or option.flag == "FILE..." or flag in told, name
    rows = "\n".join(reference.losses())
    assert all(f"| `{name}` |" in rows for name in CATALOGUE)
    told = [line.split("|") for line in reference.outcomes() if "`" in line]
    assert [row[1].strip(" `") for row in told] == [one.name for one in Outcome if one]
    assert all(len(row[3].strip()) > 10 for row in told)


@pytest.mark.parametrize("name", ["command", "losses", "outcomes"])
def test_the_tables_of_a_page_are_those_of_the_library(name, reference):
    """`python notebooks/_reference.py` writes them anew."""
    page = (MANUAL / "reference" / f"{name}.md").read_text("utf-8")
    assert page.count("| `") > 8
    assert reference.with_tables(page) == page
    assert reference.with_tables(page.replace("| `", "| x`")) == page


def test_a_signature_has_short_names_for_arrays(reference):
    from flowlab import solve, starts
    from flowlab.losses import DPO

    def signature(what, thing):
        return reference._signature(None, what, "", thing, None, None, None)

    inside, returned = signature("function", starts.grid)
    assert inside.startswith("(shape: int | tuple[int, ...]") and "[" not in returned
    assert "flow: AbstractFlow" in signature("function", solve.flow_line)[0]
    assert signature("class", DPO)[0].startswith("(beta")


def test_a_type_of_which_there_are_two_has_its_full_name_in_a_signature(reference):
    from flowlab import plots

    drawn, _ = reference._signature(None, "function", "", plots.comparison, None, None, None)
    assert drawn.startswith("(comparison: flowlab.cards.Comparison, *, axes: Sequence[Axes]")


def test_a_page_that_says_what_is_not_so_is_found_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\nprints\n\n```\n3\n```\n", encoding="utf-8")
    assert run(page) == ["page.md, line 8: prints\n2\n"]
    page.write_text("```console\n$ flowlab --help\nUsage: flow lab...\n```\n", encoding="utf-8")
    assert [said.splitlines()[:2] for said in run(page)] == [
        ["page.md, line 2: answers", "Usage: flowlab [OPTIONS] COMMAND [ARGS]..."]
    ]
    page.write_text("```console\n$ flowlab --help\nUsage: ...\n```\n", encoding="utf-8")
    assert run(page) == []
