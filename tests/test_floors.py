"""The house stands on its floors: imports go downward only, and no import chain closes a circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "medvisionllama"

# The first entry that matches a module's name decides. docs/architecture.md tells the same story.
FLOORS = [
    (0, ("errors", "whole_file", "held", "label_reading")),
    (
        1,
        (
            "geometry",
            "losses",
            "metrics",
            "sliding_window",
            "mapped",
            "largest_component",
            "checkpoint",
            "run_folder",
            "language",
            "models",
            "processes",
        ),
    ),
    (2, ("data", "reports", "recipe", "averaging")),
    (3, ("train", "predict", "evaluate")),
    (
        4,
        (
            "run",
            "run_setup",
            "segment",
            "loading",
            "score_part",
            "cleanup",
            "config",
            "pictures",
            "reference",
            "provenance",
            "explain",
            "machine",
            "listener",
            "recorders",
        ),
    ),
    (5, ("experiments", "demo")),
    (6, ("interop",)),
    (7, ("cli", "__main__", "commands", "console")),
    (8, ("__init__",)),  # names what the package offers; imports it only when asked
]
ONLY_TOGETHER = {
    ("sliding_window", "mapped"),
    ("models", "language"),
    ("data", "geometry"),
    ("metrics", "geometry"),
    ("recipe", "data"),
}
HEAVY = ("torch", "transformers", "peft", "monai", "nibabel")


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"] = path
    return found


def imports_of(path: Path, *, lazy: bool = True) -> set[str]:
    """Names of our own modules that a file imports; without ``lazy`` only those at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def own_imports(path: Path) -> set[str]:
    known = modules()
    names = (n.removeprefix("medvisionllama").lstrip(".") for n in imports_of(path) if n.startswith("medvisionllama."))
    return {name for name in names if name in known}


def floor(module: str) -> int:
    room = module.split(".")[0]
    return next(level for level, rooms in FLOORS if room in rooms)


def allowed(importer: str, imported: str) -> bool:
    above, below = floor(importer), floor(imported)
    rooms = (importer.split(".")[0], imported.split(".")[0])
    if below == 0 or rooms[0] == rooms[1] or rooms in ONLY_TOGETHER:
        return True
    if above == 3 and rooms[1] == "models":
        return False  # the model arrives as an argument
    if rooms[0] == "reports":
        return imported == "run_folder"
    if above == 4 or above >= 6:
        return below <= above
    return below < above


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_downward(module: str) -> None:
    upward = {name for name in own_imports(modules()[module]) if not allowed(module, name)}
    assert not upward, f"{module} (floor {floor(module)}) imports {sorted(upward)}"


def test_the_check_can_fail() -> None:
    assert not allowed("geometry", "data.nifti")
    assert not allowed("train", "models.vit")
    assert not allowed("train", "predict")
    assert not allowed("reports.page", "geometry")
    assert not allowed("run", "cli")
    assert allowed("run", "train")


def test_no_circles() -> None:
    graph = {name: own_imports(path) - {name} for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for below in graph[name]:
                visit(below, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_pages_are_drawn_without_torch_and_nibabel() -> None:
    for module, path in modules().items():
        if module.startswith(("reports", "commands")) or module in ("run_folder", "errors", "__init__", "cli"):
            heavy = {
                name
                for name in imports_of(
                    path, lazy=module not in ("cli", "__init__") and not module.startswith("commands")
                )
                if name.split(".")[0] in HEAVY
            }
            assert not heavy, f"{module} imports {sorted(heavy)}"


def test_only_one_file_knows_nibabel() -> None:
    knowing = [m for m, path in modules().items() if any(n.split(".")[0] == "nibabel" for n in imports_of(path))]
    assert knowing == ["data.nifti"]


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_pickle_and_no_strings_that_run(module: str) -> None:
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec"}
    # CLI.md's one exception: a hub's pytorch_model.bin, read with weights_only=True, whose error type has this home.
    may_name = {"pickle"} if module == "language.pickled" else set()
    serialisers = {"pickle", "dill", "joblib", "cloudpickle"} - may_name
    assert not {name.split(".")[0] for name in imports_of(modules()[module])} & serialisers
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.save":
            pytest.fail("torch.save pickles")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
            assert any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)
