"""Steps of runs and lineage of artifacts, read from ML Metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_marks import Marks

from pipeline.lineage import Lineage

FIRST, SECOND = "20260101-120000", "20260102-120000"


def test_a_workdir_without_metadata_has_no_runs(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path)
    assert list(lineage.run_ids) == []
    assert list(lineage.steps(FIRST)) == []
    assert lineage.output(FIRST, "Trainer", "model") is None
    assert list(lineage.origin(1)) == []
    assert not (tmp_path / "metadata.sqlite").exists()


def test_steps_are_told_in_order_with_state_artifacts_and_properties(marks: Marks) -> None:
    examples = marks.artifact("Examples", "data/examples", rows_read=7, file_format="gz")
    marks.step(FIRST, "ExampleGen", outputs=[("examples", examples)], properties={"input_base": "data"})
    marks.step(FIRST, "Trainer", "failed", inputs=[("examples", examples)])
    marks.step(SECOND, "ExampleGen", "cached", outputs=[("examples", examples)])
    lineage = Lineage(marks.workdir)
    assert list(lineage.run_ids) == [FIRST, SECOND]
    generated, trained = lineage.steps(FIRST)
    assert (generated.component, generated.state, generated.properties) == (
        "ExampleGen",
        "done",
        {"input_base": "data"},
    )
    assert (trained.component, trained.state) == ("Trainer", "failed")
    assert trained.inputs == (("examples", examples),) and trained.outputs == ()
    assert [step.state for step in lineage.steps(SECOND)] == ["cached"]
    found = lineage.output(FIRST, "ExampleGen", "examples")
    assert found is not None
    assert (found.type, found.uri) == ("Examples", "data/examples")
    assert found.properties == {"rows_read": 7, "file_format": "gz"}
    assert lineage.output(FIRST, "Trainer", "model") is None


@pytest.fixture
def two_runs(marks: Marks) -> dict[str, int]:
    """The second run takes the examples from the cache, looks the first one's model up and trains another."""
    ids = {name: marks.artifact(name.title()) for name in ("examples", "model", "blessing", "second model", "pushed")}
    marks.step(FIRST, "ExampleGen", outputs=[("examples", ids["examples"])])
    marks.step(FIRST, "Trainer", inputs=[("examples", ids["examples"])], outputs=[("model", ids["model"])])
    marks.step(SECOND, "ExampleGen", "cached", outputs=[("examples", ids["examples"])])
    marks.step(SECOND, "Trainer", inputs=[("examples", ids["examples"])], outputs=[("model", ids["second model"])])
    marks.step(SECOND, "Resolver", outputs=[("model", ids["model"])])
    marks.step(
        SECOND,
        "Evaluator",
        inputs=[("model", ids["second model"]), ("baseline_model", ids["model"])],
        outputs=[("blessing", ids["blessing"])],
    )
    marks.step(
        SECOND,
        "Pusher",
        inputs=[("model", ids["second model"]), ("blessing", ids["blessing"])],
        outputs=[("pushed", ids["pushed"])],
    )
    return ids


def test_the_origin_of_a_version_leads_to_the_run_that_really_made_each_part(
    marks: Marks, two_runs: dict[str, int]
) -> None:
    origin = Lineage(marks.workdir).origin(two_runs["pushed"], without=("baseline_model",))
    assert [(step.run_id, step.component, artifact.id) for step, artifact in origin] == [
        (FIRST, "ExampleGen", two_runs["examples"]),
        (SECOND, "Trainer", two_runs["second model"]),
        (SECOND, "Evaluator", two_runs["blessing"]),
        (SECOND, "Pusher", two_runs["pushed"]),
    ]


def test_a_model_that_was_looked_up_was_made_by_its_trainer(marks: Marks, two_runs: dict[str, int]) -> None:
    origin = Lineage(marks.workdir).origin(two_runs["pushed"])
    makers = {artifact.id: (step.run_id, step.component) for step, artifact in origin}
    assert makers[two_runs["model"]] == (FIRST, "Trainer")
