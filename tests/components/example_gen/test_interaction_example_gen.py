"""The component inside TFX: its driver, its cache, and the compiler of Kubeflow Pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingestion import make_data, make_schema, make_tables, read_examples, write_tables

from components.example_gen.data_errors import DataError
from recipe.data import Data


def test_local_dag_runner(folder: Path, tmp_path: Path) -> None:
    """The driver takes an unchanged run from the cache, and runs the component for a new span or new code."""
    from tfx.orchestration import metadata
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner
    from tfx.orchestration.pipeline import Pipeline

    from components.example_gen.component import InteractionExampleGen

    sources = {name: {**source.model_dump(), "files": f"span-{{SPAN}}/{name}*"}
               for name, source in make_data().sources.tables().items()}  # fmt: skip
    connection = metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.db"))

    def run(data: Data, code_version: str = "1") -> list[tuple[str, int, int]]:
        """Run the DAG; return URI, span and rows read of every artifact so far."""
        component = InteractionExampleGen(str(folder), data, make_schema(), code_version)
        pipeline = Pipeline(
            pipeline_name="ingestion",
            pipeline_root=str(tmp_path / "root"),
            components=[component],
            enable_cache=True,
            metadata_connection_config=connection,
            beam_pipeline_args=["--runner=FnApiRunner", "--sdk_container_image=unused"],
        )
        LocalDagRunner().run(pipeline)
        with metadata.Metadata(connection) as store:
            return [
                (
                    artifact.uri,
                    artifact.custom_properties["span"].int_value,
                    artifact.custom_properties["rows_read"].int_value,
                )
                for artifact in store.store.get_artifacts_by_type("Examples")
            ]

    data = make_data(sources=sources)
    span = folder / "span-1"
    span.mkdir()
    write_tables(span, make_tables())
    first = run(data)
    assert [artifact[1:] for artifact in first] == [(1, 40)]
    assert len(read_examples(f"{first[0][0]}/Split-catalogue")) == 12
    assert run(data) == first

    changed = [data.model_copy(update={"max_bad_rows": 0.1}), data]
    assert [len(run(changed[0])), len(run(changed[1], "2"))] == [2, 3]

    newer = folder / "span-2"
    newer.mkdir()
    tables = make_tables()
    tables["interactions.csv"] = "".join(str(tables["interactions.csv"]).splitlines(keepends=True)[:31])
    write_tables(newer, tables)
    assert [artifact[1:] for artifact in run(data)[3:]] == [(2, 30)]

    # An error in the data is raised with its own type, and the artifacts of earlier runs are kept.
    with (newer / "interactions.csv").open("a") as stream:
        stream.write("u1,i1,6,1001\n")
    with pytest.raises(DataError, match=r"span-2/interactions\.csv:32: rating: expected a number from 1 to 5, got '6'"):
        run(data)
    assert len(read_examples(f"{first[0][0]}/Split-catalogue")) == 12


def test_the_input_base_may_be_given_at_run_time() -> None:
    from tfx.orchestration.data_types import RuntimeParameter

    from components.example_gen.component import InteractionExampleGen

    base = RuntimeParameter(name="data", ptype=str)
    component = InteractionExampleGen(base, make_data(), make_schema(), "1")
    assert component.exec_properties["input_base"] is base
