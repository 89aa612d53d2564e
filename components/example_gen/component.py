"""InteractionExampleGen, the first component of the DAG."""

from __future__ import annotations

from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.example_gen.component import FileBasedExampleGen
from tfx.dsl.components.base import executor_spec
from tfx.orchestration import data_types
from tfx.proto import example_gen_pb2

from components.example_gen.config import encode_config
from components.example_gen.executor import Executor
from recipe.data import Data


class InteractionExampleGen(FileBasedExampleGen):  # type: ignore[misc,unused-ignore]
    """Read tables of interactions (CSV or JSON) and the tables joined onto them, and split the rows.

        example_gen = InteractionExampleGen("data/movielens", recipe.data, schema, code_version="1")
        StatisticsGen(examples=example_gen.outputs["examples"], exclude_splits=["catalogue"])

    Outputs `examples`, an Examples artifact of gzipped TFRecords of tf.Examples with the splits

    - `train` and `eval`: one example per interaction (or per user and item, if duplicates are merged) and one per
      sampled negative, with every feature of the schema. Train rows are shuffled only within blocks of about 1 MiB of
      CSV, or within partitions of users; the Trainer shuffles further.
    - `catalogue`: one example per item, with or without interactions, with the columns of the items table only.

    The folder `rejected/` beside the splits has the rejected rows. Custom properties of the artifact: `rows_read`,
    `rows_rejected`, `rows_merged`, `rows_negatives`, `rows_train`, `rows_eval` and `rows_catalogue`, where read +
    negatives = train + eval + rejected + merged; and for each lookup table `rows_rejected_items` and
    `rows_merged_items` (dropped as duplicates), named as in `data.sources.tables()` with `_` for `.`.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        input_base: str | data_types.RuntimeParameter,
        data: Data,
        schema: schema_pb2.Schema,
        code_version: str,
    ) -> None:
        """Create the component.

        Args:
            input_base: The folder that the recipe's file patterns are relative to.
            data: The recipe's data section. Patterns may contain TFX's {SPAN}, {VERSION} and date placeholders.
            schema: The curated schema; every feature in it becomes a feature of the examples.
            code_version: Hash of the component's code, so that results of older code are not reused.
        """
        # To TFX's driver a table is an input split: it fingerprints the files of each and resolves spans and versions.
        tables = [
            example_gen_pb2.Input.Split(name=name, pattern=source.files)
            for name, source in data.sources.tables().items()
        ]
        super().__init__(
            input_base=input_base,
            input_config=example_gen_pb2.Input(splits=tables),
            # Empty, because TFX would otherwise set a hash split of its own. The executor assigns the splits.
            output_config=example_gen_pb2.Output(),
            custom_config=encode_config(data, schema, code_version),
        )
