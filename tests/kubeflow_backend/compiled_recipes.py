"""Compiles shipped recipes for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "image": "registry/tandem:1",
    "pipeline_root": "gs://bucket/root",
    "data_root": "gs://bucket/data",
    "push_destination": "gs://bucket/serving",
}


def compile_recipe(path: Path, name: str, *overrides: str, **options: Any) -> Path:
    """Writes the pipeline of a shipped recipe with some changes to `path`.

    Args:
        path: The YAML file.
        name: Of the folder in `schemas`.
        overrides: `key=value` changes.
        options: Those of `pipeline.runners.kubeflow.compile.Options`; `OPTIONS` where not given.
    """
    from pipeline.runners.kubeflow.compile import Options, compile_pipeline, write_pipeline
    from recipe import load_recipe, load_schema

    recipe = load_recipe(ROOT / "schemas" / name, overrides)
    schema = load_schema(ROOT / "schemas" / name, recipe)
    documents = compile_pipeline(recipe, schema, Options(**{**OPTIONS, **options}))
    write_pipeline(documents, recipe.description, path)
    return path
