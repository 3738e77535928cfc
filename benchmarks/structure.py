"""The structure of the packages in figures: folders, files, imports, callables as parameters, the way of a picture.

    python benchmarks/structure.py --before CHECKOUT      # this checkout beside an older one

Imports are read from the source, inside functions too. A chain is the longest path from a file to the last that it
needs, over files; a circle is a group of files that need each other. An import is upward where the layers of
import-linter in this checkout's pyproject.toml put the imported room above the importing one; an older checkout without
rooms has none to compare. The way of a picture is a trace of calls: `fit` with the head on the demo's digits, each pair
of files counted once however often one calls the other. A file is re-entered by every other file that calls it after
the first. The figures can fail: a new file in a full room, a circle or a callback changes them. Results in
benchmarks/results/structure.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import statistics
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from machine import provenance

HERE = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "structure.json"
PACKAGES = ("finetune", "fewshot")

# Runs in a process of its own, on the packages of one checkout.
TRACE = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
root = sys.argv[1] + "/finetune"
import finetune
try:
    from finetune.data.digits import write_digits
except ImportError:
    from finetune.digits import write_digits
pairs, entered = [], []
def trace(frame, event, _):
    if event != "call":
        return
    file = frame.f_code.co_filename
    if not file.startswith(root) or frame.f_code.co_name == "<module>":
        return
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith(root):
        caller = caller.f_back
    source = "" if caller is None else caller.f_code.co_filename
    if source != file:
        pair = (source[len(root):], file[len(root):])
        if pair not in seen:
            seen.add(pair)
            pairs.append(pair)
seen = set()
with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / "digits"
    write_digits(folder, per_class=10)
    options = dict(strategy="head", backbone="fewtune_conv4", device="cpu", workers=0, cache=False)
    finetune.fit  # imports first: they are not the way of a picture
    sys.setprofile(trace)
    finetune.fit(folder, Path(place) / "run", **options)
    sys.setprofile(None)
print(json.dumps(pairs))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="an older checkout, measured too")
    arguments = parser.parse_args()
    result: dict[str, Any] = provenance()
    result["command"] = "python benchmarks/structure.py --before CHECKOUT"
    if arguments.before is not None:
        result["before"] = measured(arguments.before.resolve())
    result["after"] = measured(HERE)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for name in result["after"]:
        before = result.get("before", {}).get(name, "")
        print(f"{name:32} {before!s:>28} {result['after'][name]!s:>28}")


def measured(root: Path) -> dict[str, Any]:
    """Every figure of one checkout."""
    sources = {path: path.read_text() for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    folders = Counter(path.parent.relative_to(root).as_posix() for path in sources)
    lines = {path: text.count("\n") for path, text in sources.items()}
    graph = imports(root, trees)
    longest = max(lines, key=lambda path: lines[path])
    pairs = traced(root)
    return {
        "files": len(sources),
        "folders": len(folders),
        "files in the fullest folder": max(folders.values()),
        "lines": sum(lines.values()),
        "lines of docstrings": sum(docstring_lines(tree) for tree in trees.values()),
        "lines of the median file": statistics.median(lines.values()),
        "lines of the longest file": f"{lines[longest]} ({longest.relative_to(root)})",
        "longest import chain, files": chain(graph),
        "circles": len([group for group in groups(graph) if len(group) > 1]),
        "upward imports": upward(graph, root),
        "files that fit enters": len({callee for _, callee in pairs}),
        "files re-entered by another": len(pairs) - len({callee for _, callee in pairs}),
        "callables as parameters": callables(trees.values()),
        "type: ignore": sum(len(re.findall(r"#\s*type:\s*ignore", text)) for text in sources.values()),
        "lines of tests": sum(path.read_text().count("\n") for path in (root / "tests").rglob("*.py")),
    }


def docstring_lines(tree: ast.Module) -> int:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in first)


def imports(root: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Module -> the modules of the packages that it imports, for types too, but not under TYPE_CHECKING."""
    names = {module_name(root, path) for path in trees}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path, tree in trees.items():
        here = module_name(root, path)
        for node in ast.walk(without_type_checking(tree)):
            found: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                found = [name if name in names else node.module for name in inner]
            elif isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            graph[here] |= {name for name in found if name in names and name != here}
    return graph


def without_type_checking(tree: ast.Module) -> ast.Module:
    kept = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    ]
    return ast.Module(body=kept, type_ignores=[])


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def groups(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected groups of modules, by scipy."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    order = sorted(graph)
    place = {name: position for position, name in enumerate(order)}
    edges = [(place[a], place[b]) for a in order for b in graph[a]]
    rows, columns = zip(*edges, strict=True)
    matrix = csr_array(([1] * len(edges), (rows, columns)), shape=(len(order), len(order)))
    count, labels = connected_components(matrix, directed=True, connection="strong")
    return [{name for name, label in zip(order, labels, strict=True) if label == group} for group in range(count)]


def chain(graph: dict[str, set[str]]) -> int:
    """Files on the longest path; a circle counts as its number of files."""
    found = groups(graph)
    home = {name: position for position, group in enumerate(found) for name in group}
    above = {position: {home[b] for a in group for b in graph[a]} - {position} for position, group in enumerate(found)}
    longest: dict[int, int] = {}

    def length(position: int) -> int:
        if position not in longest:
            longest[position] = len(found[position]) + max((length(other) for other in above[position]), default=0)
        return longest[position]

    return max(length(position) for position in above)


def upward(graph: dict[str, set[str]], root: Path) -> int | None:
    """Imports from a lower layer to a higher one. None where the checkout declares no layers."""
    settings = tomllib.loads((root / "pyproject.toml").read_text()).get("tool", {}).get("importlinter", {})
    contracts = [contract for contract in settings.get("contracts", []) if contract["type"] == "layers"]
    if not contracts:
        return None
    count = 0
    for contract in contracts:
        containers = contract.get("containers", [""])
        layers = [re.split(r"\s*[|:]\s*", layer) for layer in contract["layers"]]
        rank = {
            ".".join(part for part in (container, name.strip("() ")) if part): position
            for container in containers
            for position, layer in enumerate(layers)
            for name in layer
        }
        for source, targets in graph.items():
            for target in targets:
                a, b = layer_of(source, rank), layer_of(target, rank)
                count += a is not None and b is not None and b < a
    return count


def layer_of(module: str, rank: dict[str, int]) -> int | None:
    owners = [name for name in rank if module == name or module.startswith(name + ".")]
    return rank[max(owners, key=len)] if owners else None


def callables(trees: Collection[ast.Module]) -> int:
    """Parameters of functions and fields of classes whose type says Callable, by itself or by an alias."""
    assigned = [node for tree in trees for node in tree.body if isinstance(node, ast.Assign)]
    aliases = {ast.unparse(node.targets[0]) for node in assigned if "Callable[" in ast.unparse(node.value)}
    called = re.compile(rf"\b({'|'.join(['Callable', *sorted(aliases)])})\b")
    types: list[ast.expr | None] = []
    for node in (inner for tree in trees for inner in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            types += [a.annotation for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        elif isinstance(node, ast.ClassDef):
            types += [inner.annotation for inner in node.body if isinstance(inner, ast.AnnAssign)]
    return sum(annotation is not None and called.search(ast.unparse(annotation)) is not None for annotation in types)


def traced(root: Path) -> list[tuple[str, str]]:
    """Pairs (calling file, called file), each once, of one `fit`."""
    done = subprocess.run([sys.executable, "-c", TRACE, str(root)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return [(source, target) for source, target in json.loads(done.stdout.splitlines()[-1])]


if __name__ == "__main__":
    main()
