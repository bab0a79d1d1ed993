"""The house stays as docs/architecture.md describes it: its map is true, and its rooms stay few and small."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests.environment import REPOSITORY

PACKAGES = ("videoplatform", "accounts", "generation", "telegram_bot", "gpu_node")
DOCUMENTS = ("docs/architecture.md", "CONTRIBUTING.md")
TEXTS = (*PACKAGES, "tests", "benchmarks", "templates", "docs", "deploy", "locale")
MOST_FILES, MOST_LINES = 240, 33_000
MOST_MODULES, LONGEST_FUNCTION, SMALLEST_MODULE = 20, 70, 15
# Written apart, so that this file does not hold them.
OLD_NAMES = [
    a + b for a, b in re.findall(r"(\w)\.(\w+)", "b.ell c.rew l.ane n.udge c.lerk h.olders u.nhurried w.ish")
]


@cache
def modules() -> dict[Path, str]:
    """Every source file of the product with a line in it, but for migrations."""
    files = [file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")]
    texts = {
        file.relative_to(REPOSITORY): file.read_text() for file in files if "migrations" not in file.parts
    }
    return {file: text for file, text in sorted(texts.items()) if text.strip()}


@cache
def imports() -> dict[str, set[str]]:
    """The imports of every module of the product, those within functions included."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


# --- The map ----------------------------------------------------------------------------------------------------------


def rows_of_the_map() -> dict[str, str]:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    return dict(re.findall(r"^\| `([\w/]+/)` \| (.*) \|$", text, re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_folders_that_a_document_names_exist(document: str) -> None:
    text = re.sub(r"```.*?```", "", (REPOSITORY / document).read_text(), flags=re.DOTALL)
    named = [
        name
        for name in re.findall(r"`([\w./-]+)`", text)
        if name.split("/")[0] in TEXTS or name.endswith(".py")
    ]
    assert len(named) > 10
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_modules_that_the_map_names_exist() -> None:
    for folder, text in rows_of_the_map().items():
        for name in re.findall(r"`(\w+)`", text):
            place = REPOSITORY / folder / name
            assert place.is_dir() or place.with_suffix(".py").exists(), f"{folder}{name}"


def test_every_folder_with_modules_is_on_the_map() -> None:
    folders = {f"{file.parent.as_posix()}/" for file in modules()}
    assert set(rows_of_the_map()) == folders


@pytest.mark.parametrize(
    "document", ["README.md", "CHANGELOG.md", "deploy/README.md", "docs/gpu-node.md", *DOCUMENTS]
)
def test_links_of_a_document_lead_somewhere(document: str) -> None:
    file = REPOSITORY / document
    links = re.findall(r"\]\(([^)#]+)\)", file.read_text())
    assert [link for link in links if ":" not in link and not (file.parent / link).exists()] == []


# --- Few and small rooms ----------------------------------------------------------------------------------------------


def test_the_product_stays_small() -> None:
    assert len(modules()) <= MOST_FILES
    assert sum(text.count("\n") for text in modules().values()) <= MOST_LINES


def test_no_folder_has_more_modules_than_one_can_look_over() -> None:
    parents = [file.parent for file in modules() if file.name != "__init__.py"]
    assert {folder for folder in parents if parents.count(folder) > MOST_MODULES} == set()


def test_no_function_is_longer_than_a_page() -> None:
    functions = [
        (f"{file}:{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for file, text in modules().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [name for name, lines in functions if lines > LONGEST_FUNCTION] == []


def test_no_import_cycle() -> None:
    """Imports within functions count, too: they hide a cycle."""
    TopologicalSorter(imports()).prepare()  # raises CycleError, which names the cycle


def test_no_tiny_module_has_a_single_user() -> None:
    tiny = [file for file, text in modules().items() if text.count("\n") < SMALLEST_MODULE]
    for file in (each for each in tiny if each.name != "__init__.py"):
        module = ".".join(file.with_suffix("").parts)
        assert sum(module in used for used in imports().values()) != 1, module


def test_old_names_are_gone() -> None:
    """Each thing has one name, the field's; docs/architecture.md uses it, too."""
    old = re.compile(rf"\b({'|'.join(OLD_NAMES)})s?\b", re.IGNORECASE)
    files = [file for folder in TEXTS for file in (REPOSITORY / folder).rglob("*")]
    files += [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("*.toml"),
        *REPOSITORY.glob("*.py"),
        REPOSITORY / "Makefile",
    ]
    kinds = {".py", ".html", ".txt", ".js", ".css", ".md", ".po", ".toml", ".yaml", ""}
    found = [
        f"{file.relative_to(REPOSITORY)}: {match[0]}"
        for file in files
        if file.is_file() and file.suffix in kinds and "__pycache__" not in file.parts
        for match in old.finditer(file.read_text(errors="replace"))
    ]
    assert found == []
