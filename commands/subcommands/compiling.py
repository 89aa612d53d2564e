"""Subcommands that compile the pipeline for another orchestrator: `compile kubeflow`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from commands.subcommands.shared_options import BeamArgs, BeamEngine, Overrides, Preset, SchemaDir
from pipeline.beam import BeamOptions, BeamRunner

CACHES = ("none", "same-inputs", "same-folder")


def kubeflow(
    schema_dir: SchemaDir,
    image: Annotated[str, typer.Option(help="Container image with Tandem, for example REGISTRY/tandem:1.")],
    pipeline_root: Annotated[
        str, typer.Option(help="Default pipeline root for artifacts: gs://…, s3://… or minio://….")
    ],
    out: Annotated[Path, typer.Option(help="YAML file to write.")] = Path("pipeline.yaml"),
    data_root: Annotated[
        str, typer.Option(help="Default of the run parameter data_root. \\[default: required for each run]")
    ] = "",
    push_destination: Annotated[
        str, typer.Option(help="Default of the run parameter push_destination. \\[default: required for each run]")
    ] = "",
    preset: Preset = None,
    overrides: Overrides = None,
    retries: Annotated[int, typer.Option(min=0, help="Number of retries of a failed container.")] = 2,
    cache: Annotated[
        str,
        typer.Option(
            help="Caching: none, same-inputs, or same-folder, which also caches ExampleGen and requires that the "
            "files of a folder never change."
        ),
    ] = "same-inputs",
    beam_runner: BeamEngine = BeamRunner.DIRECT,
    beam_args: BeamArgs = None,
    volumes: Annotated[
        list[str] | None,
        typer.Option(
            "--volume",
            metavar="CLAIM:/PATH",
            help="PersistentVolumeClaim to mount in every container (open-source backend only). Repeatable.",
        ),
    ] = None,
) -> None:
    """Compile the pipeline for Kubeflow Pipelines v2, open-source or Vertex AI.

    Parameters of a run: data_root, push_destination, epochs, batch_size, learning_rate, embedding_dim,
    seed and recipe_overrides.
    """
    # Silences TensorFlow's log of CPU features.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from absl import logging

    from recipe import BadInput, load_recipe, load_schema

    if cache not in CACHES:
        raise BadInput(f"--cache: expected {', '.join(CACHES[:-1])} or {CACHES[-1]}, got {cache!r}")
    if importlib.util.find_spec("kfp") is None:
        raise BadInput(
            "The Kubeflow Pipelines SDK (kfp) is not installed. Install it with: pip install 'tandem[kubeflow]'"
        )
    beam = BeamOptions(beam_runner, tuple(beam_args or ()))
    beam.check(on_cluster=True)
    recipe = load_recipe(schema_dir, overrides or [], preset)
    schema = load_schema(schema_dir, recipe)
    logging.set_verbosity(logging.ERROR)

    from pipeline.runners.kubeflow.compile import Options, Volume, compile_pipeline, write_pipeline

    options = Options(
        image=image,
        pipeline_root=pipeline_root,
        data_root=data_root,
        push_destination=push_destination,
        retries=retries,
        cache=cache,
        volumes=tuple(map(Volume.parse, volumes or ())),
        beam=beam,
    )
    documents = compile_pipeline(recipe, schema, options)
    write_pipeline(documents, recipe.description, out)
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    required = [name for name, parameter in parameters.items() if "defaultValue" not in parameter]
    print(f"{out}: pipeline {documents[0]['pipelineInfo']['name']!r}, {len(documents[0]['components'])} components")
    if required:
        print(f"Required parameters of each run: {', '.join(sorted(required))}")
