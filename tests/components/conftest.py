"""The Evaluator's real executor, for the tests of the gate and of the models that it is to stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

LABEL = "stars"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What the Evaluator's executor left behind."""

    verdict: Any
    blessed: bool
    """As the blessing artifact has it."""
    blessing: dict[str, Any]
    """Its other properties."""
    blessing_files: set[str]


@pytest.fixture(scope="session")
def run_evaluator(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Evaluated]:
    """Runs the executor as TFX does and reads what it wrote."""

    def run(candidate: Path, examples: Path, gates: Sequence[Any], last: Path | None = None, **more: Any) -> Evaluated:
        """`candidate` and `last` hold a SavedModel each, and `examples` a split `eval`; `more` goes to the settings."""
        import apache_beam as beam
        from tfx.dsl.components.base import base_beam_executor
        from tfx.types import artifact_utils, standard_artifacts

        from components.evaluator.executor import Executor
        from components.evaluator.settings import EvaluatorSettings
        from components.evaluator.verdict import VERDICT_FILE, Verdict
        from recipe.evaluation import Slices

        folder = tmp_path_factory.mktemp("evaluator")

        def artifact(kind: type, uri: Path, identifier: int = 0) -> Any:
            made = kind()
            made.uri = str(uri)
            made.id = identifier
            return made

        data = artifact(standard_artifacts.Examples, examples)
        splits = sorted(path.name.removeprefix("Split-") for path in examples.iterdir())
        data.split_names = artifact_utils.encode_split_names(splits)
        inputs = {"examples": [data], "model": [artifact(standard_artifacts.Model, candidate, 7)]}
        if last is not None:
            inputs["baseline_model"] = [artifact(standard_artifacts.Model, last, 3)]
        blessing = artifact(standard_artifacts.ModelBlessing, folder / "blessing")
        outputs = {
            "evaluation": [artifact(standard_artifacts.ModelEvaluation, folder / "evaluation")],
            "blessing": [blessing],
        }
        # Not as beam_pipeline_args, because TFX would then package itself for remote workers, which takes seconds.
        context = base_beam_executor.BaseBeamExecutor.Context(
            tmp_dir=str(folder / "tmp"),
            unique_id="1",
            make_beam_pipeline_fn=lambda: beam.Pipeline(argv=["--runner=FnApiRunner"]),
        )
        settings = EvaluatorSettings(
            **{"gates": gates, "slices": Slices(), "label": LABEL, "exclude_seen": True, **more}
        )
        properties = {"settings": settings.model_dump_json(), "current_component_id": "Evaluator"}
        Executor(context).Do(inputs, outputs, properties)
        found = {
            name: blessing.get_int_custom_property(name)
            for name in ("blessed", "current_model_id", "baseline_model_id")
        }
        found |= {
            name: blessing.get_string_custom_property(name)
            for name in ("current_model", "baseline_model", "component_id", "reason")
        }
        return Evaluated(
            verdict=Verdict.model_validate_json((folder / "evaluation" / VERDICT_FILE).read_text()),
            blessed=found.pop("blessed") == 1,
            blessing=found,
            blessing_files={path.name for path in (folder / "blessing").iterdir()},
        )

    return run
