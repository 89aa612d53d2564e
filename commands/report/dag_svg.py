"""Draws the DAG of a run as SVG: components in order, the artifacts between them, and durations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from commands.report.words import brief_duration
from pipeline.lineage import Step
from pipeline.run_history import Run

NodeState = Literal["done", "cached", "failed", "unfinished", "not reached"]

_ROW = 42
_BOX_HEIGHT = 30
_GUTTER, _BOX_WIDTH, _BAR_WIDTH = 66, 168, 60
WIDTH = 360


@dataclasses.dataclass(frozen=True)
class Node:
    """A component in the SVG."""

    name: str
    state: NodeState
    seconds: float
    y: float
    """Middle of its box."""
    bar: float
    """Width of its bar."""

    @property
    def note(self) -> str:
        if self.state in ("done", "cached"):
            return "cached" if self.state == "cached" else brief_duration(self.seconds)
        return {"failed": "failed", "unfinished": "not finished"}.get(self.state, "not run")


@dataclasses.dataclass(frozen=True)
class Edge:
    """The artifacts from one component to another."""

    source: str
    target: str
    artifacts: tuple[str, ...]
    """Types of the artifacts."""
    path: str
    """SVG path."""


@dataclasses.dataclass(frozen=True)
class DagSvg:
    """The elements that the template draws."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    height: int
    description: str
    """Text alternative of the SVG."""
    box_x: int = _GUTTER
    box_width: int = _BOX_WIDTH
    box_height: int = _BOX_HEIGHT
    bar_x: int = _GUTTER + _BOX_WIDTH + 8
    width: int = WIDTH


def draw(run: Run, steps: Sequence[Step], types: Mapping[int, str], expected: Sequence[str]) -> DagSvg:
    """Lay out the DAG.

    Args:
        run: The run.
        steps: Its executions, from ML Metadata.
        types: Artifact types by artifact id.
        expected: Components of a complete run, in order; those that did not start are drawn pale.
    """
    outcomes = {component.name: component for component in run.components}
    names = [*outcomes, *(name for name in expected if name not in outcomes)]
    longest = max((component.seconds for component in run.components), default=0.0) or 1.0
    nodes = []
    for place, name in enumerate(names):
        outcome = outcomes.get(name)
        seconds = outcome.seconds if outcome is not None else 0.0
        nodes.append(
            Node(
                name=name,
                state=outcome.state if outcome is not None else "not reached",
                seconds=seconds,
                y=_ROW * place + _ROW / 2,
                bar=max(_BAR_WIDTH * seconds / longest, 1.5) if outcome and outcome.state != "cached" else 0.0,
            )
        )
    place_of = {name: place for place, name in enumerate(names)}
    flows: dict[tuple[str, str], list[str]] = {}
    givers: dict[int, str] = {}
    for step in steps:
        for _, artifact in step.inputs:
            source = givers.get(artifact)
            if source is not None and source in place_of and step.component in place_of:
                flows.setdefault((source, step.component), []).append(types.get(artifact, "artifact"))
        # The latest producer: a cached artifact was produced in another run.
        givers |= {artifact: step.component for _, artifact in step.outputs}
    lanes: list[list[tuple[int, int]]] = []
    edges = []
    for source, target in sorted(flows, key=lambda flow: place_of[flow[1]] - place_of[flow[0]]):
        start, end = place_of[source], place_of[target]
        edges.append(Edge(source, target, tuple(dict.fromkeys(flows[source, target])), _path(start, end, lanes)))
    return DagSvg(
        nodes=tuple(nodes),
        edges=tuple(edges),
        height=_ROW * len(nodes),
        description="; ".join(f"{node.name}: {node.note}" for node in nodes),
    )


def _path(start: int, end: int, lanes: list[list[tuple[int, int]]]) -> str:
    """Return a straight line to the next row, or for other rows a line in the first free lane of the gutter."""
    middle = _GUTTER + 22
    if end == start + 1:
        top = _ROW * start + _ROW / 2 + _BOX_HEIGHT / 2
        return f"M{middle} {top}V{top + _ROW - _BOX_HEIGHT - 3}"
    lane = 0
    while lane < len(lanes) and any(start < other_end and other_start < end for other_start, other_end in lanes[lane]):
        lane += 1
    if lane == len(lanes):
        lanes.append([])
    lanes[lane].append((start, end))
    x = _GUTTER - 14 - 9 * lane
    # Outgoing and incoming lines touch the box at different heights.
    y, last = _ROW * start + _ROW / 2 + 6, _ROW * end + _ROW / 2 - 6
    return f"M{_GUTTER} {y}H{x + 6}Q{x} {y} {x} {y + 6}V{last - 6}Q{x} {last} {x + 6} {last}H{_GUTTER - 3}"
