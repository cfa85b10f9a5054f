"""Draws docs/pictures/architecture.svg from the imports in src/: `make docs`, kept current by tests/test_docs.py.

An arrow means "imports". An arrow that follows from two others is left out.
"""

import ast
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "trilithon"
BASE = "errors, units, settings, files"
PURPOSES = {
    "cli": "commands",
    "web": "web pages",
    "fleet": "several boards, gateway",
    "tune": "search of settings",
    "bench": "campaigns, quality checks",
    "serve": "HTTP server and APIs",
    "estimate": "published measurements, estimates",
    "results": "database, comparison, reports",
    "runtime": "child processes, pool, handover",
    "measure": "records and statistics",
    "engines": "one folder per engine",
    "board": "hardware, sensors, doctor",
    "models": "files, store, downloads",
    BASE: "",
}
Graph = Mapping[str, frozenset[str]]
WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT = 760, 96, 250, 52
BOX = f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="#eef3f8" stroke="#356"'
TITLE = 'text-anchor="middle" font-size="15" font-weight="bold"'


def box(name: str) -> str:
    return name if name in PURPOSES else BASE


def imports() -> Graph:
    """Package → the packages that its modules import."""
    graph: dict[str, set[str]] = {name: set() for name in PURPOSES}
    for path in SOURCE.rglob("*.py"):
        importer = path.relative_to(SOURCE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("trilithon.") and importer not in ("__init__", "__main__"):
                graph[box(importer)].add(box(module.split(".")[1]))
    return {name: frozenset(targets - {name}) for name, targets in graph.items()}


def reachable(graph: Graph, start: str) -> frozenset[str]:
    return graph[start].union(*(reachable(graph, target) for target in graph[start]))


def direct(graph: Graph) -> Graph:
    """Without the arrows that follow from others (the transitive reduction)."""
    return {
        name: frozenset(t for t in targets if not any(t in reachable(graph, other) for other in targets))
        for name, targets in graph.items()
    }


def depth(graph: Graph, name: str) -> int:
    """The longest way down to `name`; 0 for what nobody imports."""
    return 1 + max((depth(graph, importer) for importer in graph if name in graph[importer]), default=-1)


def places(graph: Graph) -> dict[str, tuple[float, float]]:
    """The centre of each box; those of one depth stand in one row."""
    rows: dict[int, list[str]] = {}
    for name in PURPOSES:
        rows.setdefault(depth(graph, name), []).append(name)
    return {
        name: (WIDTH * (2 * column + 1) / (2 * len(row)), ROW * number + ROW / 2)
        for number, row in rows.items()
        for column, name in enumerate(row)
    }


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From the lower edge of a box to the upper edge of another; one that passes a row bends around it."""
    (x1, y1), (x2, y2) = (start[0], start[1] + BOX_HEIGHT / 2), (end[0], end[1] - BOX_HEIGHT / 2 - 4)
    if y2 - y1 < ROW:
        return f'<path d="M{x1:.0f} {y1:.0f} L{x2:.0f} {y2:.0f}"/>'
    side = (min(x1, x2) if x1 + x2 < WIDTH else max(x1, x2)) - WIDTH / 2
    bend = WIDTH / 2 + side + (BOX_WIDTH * 0.9 if side > 0 else -BOX_WIDTH * 0.9)
    return (
        f'<path d="M{x1:.0f} {y1:.0f} C{bend:.0f} {y1 + ROW / 2:.0f} {bend:.0f} {y2 - ROW / 2:.0f} {x2:.0f} {y2:.0f}"/>'
    )


def picture(graph: Graph) -> str:
    centres = places(graph)
    height = max(y for _, y in centres.values()) + ROW / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="8" markerHeight="8" orient="auto">',
        '<path d="M0 0 L8 4 L0 8 z" fill="#555"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>',
        '<g fill="none" stroke="#555" stroke-width="1.5" marker-end="url(#head)">',
        *(arrow(centres[name], centres[target]) for name in PURPOSES for target in PURPOSES if target in graph[name]),
        "</g>",
    ]
    for name, (x, y) in centres.items():
        lines += [
            f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" {BOX}/>',
            f'<text x="{x:.0f}" y="{y + (-4 if PURPOSES[name] else 4):.0f}" {TITLE}>{escape(name)}</text>',
            f'<text x="{x:.0f}" y="{y + 16:.0f}" text-anchor="middle" font-size="13">{escape(PURPOSES[name])}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    sys.stdout.write(picture(direct(imports())))
