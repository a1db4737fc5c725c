"""The order of rooms: which module may import which, how large rooms and files are, and names and sentences in them.

Imports that run when a module is imported count; those inside functions, and those for type checkers only, do not.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up: a room imports from those in lines above its own. A line may hold several that import nothing of
# each other.
STOREYS = (
    ("errors", "ids", "names", "printable", "progress"),
    ("arguments", "installing"),
    ("bundle",),
    ("runtime",),
    ("blt", "mambabyte", "overencoded"),
    ("decoding", "doctor", "inspection"),
    ("scores",),
    ("batching",),
    ("model",),
    ("corpus", "node_providers", "measure"),
    ("evaluation",),
    ("prepare", "report"),
    ("serving",),
    ("quant.formats",),
    ("quant.methods",),
    ("quant.recipes",),
    ("export.operators", "export.hub"),
    ("export.graphs",),
    ("export.architectures",),
    ("export.checkpoints",),
    ("quant.calibration",),
    ("export.blt", "export.mambabyte", "export.overencoded"),
    ("quant",),
    ("quant.optimum_cli",),
    ("export",),
    ("export.sweep",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
PACKAGE = "edgeblt"
LARGEST_ROOM = 16
LONGEST_FILE = 350  # lines
# Files still to be divided; whoever has divided one takes it from the list.
LONG_FILES: set[str] = set()
# Docstrings open with a noun or a verb; these words lead to phrases that need a second reading.
OPENINGS = re.compile(r"(Of|As|Those|What|With)\b")
PLAIN_ROOMS = ("edgeblt", "export", "quant", "tools", "benchmarks")


def modules() -> dict[str, Path]:
    """Every module by its name below `edgeblt`, the package itself left out."""
    found = {"cli": ROOT / "cli.py"}
    for folder, prefix in (("edgeblt", ()), ("export", ("export",)), ("quant", ("quant",))):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "edgeblt" and (inside[0] in ("export", "quant") or path.is_symlink()):
                continue
            if name := ".".join((*prefix, *(part for part in inside if part != "__init__"))):
                found[name] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The room a module is in, or its own name if it stands alone at the top."""
    parts = module.split(".")
    if parts[0] not in ("export", "quant"):
        return parts[0]
    return ".".join(parts[:2]) if ".".join(parts[:2]) in ROOMS or len(parts) > 2 else parts[0]


ROOMS = {name for storey in STOREYS for name in storey}


def imports(tree: ast.AST) -> Iterator[str]:
    """Names below `edgeblt` that a module imports as it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            package = node.module.partition(".")[2]
            for alias in node.names:
                whole = f"{package}.{alias.name}".lstrip(".")
                yield whole if whole in MODULES else package
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        yield from imports(node)


ARROWS = {name: sorted(set(imports(ast.parse(path.read_text())))) for name, path in MODULES.items()}


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in MODULES} <= ROOMS


def test_no_room_imports_from_one_above_it() -> None:
    storey = {name: number for number, names in enumerate(STOREYS) for name in names}
    upward = [
        f"{name} imports {target}"
        for name, targets in ARROWS.items()
        for target in targets
        if target and room(target) != room(name) and storey[room(target)] >= storey[room(name)]
    ]
    assert upward == []


def test_no_modules_import_each_other() -> None:
    ends: set[str] = set()  # all that is imported from here on is known to come to an end

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " imports ".join((*way[way.index(name) :], name))
        if name not in ends:
            for target in ARROWS.get(name, ()):
                follow(target, (*way, name))
            ends.add(name)

    for name in MODULES:
        follow(name, ())


def test_rooms_stay_small() -> None:
    folders = {path.parent for path in MODULES.values()} - {ROOT}
    sizes = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: size for name, size in sizes.items() if size > LARGEST_ROOM} == {}


def test_files_stay_short() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in MODULES.values()}
    assert {name for name, count in lines.items() if count > LONGEST_FILE} <= LONG_FILES


def definitions(path: Path) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """A module, and every class and function in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_class_name_stands_twice() -> None:
    names = Counter(
        node.name for path in MODULES.values() for node in definitions(path) if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.parametrize("folder", PLAIN_ROOMS)
def test_docstrings_open_with_a_noun_or_a_verb(folder: str) -> None:
    paths = (path for path in sorted((ROOT / folder).rglob("*.py")) if not path.is_symlink())
    found = [
        f"{path.relative_to(ROOT)}: {docstring.splitlines()[0]}"
        for path in paths
        for node in definitions(path)
        if (docstring := ast.get_docstring(node)) and OPENINGS.match(docstring)
    ]
    assert found == []
