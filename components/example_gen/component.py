"""InteractionExampleGen: the DAG's first component."""

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
    """Reads tables of interactions (CSV or JSON) and the tables joined onto them, and splits the rows.

    Outputs `examples`, an Examples artifact of gzipped TFRecords of tf.Examples with the splits

    - `train` and `eval`: one example an interaction (or a user and item, where duplicates are merged) and one a sampled
      negative, with every feature of the schema. Train rows are shuffled within blocks of about 1 MiB of CSV, or within
      partitions of users, only: whoever trains on them shuffles further.
    - `catalogue`: one example an item, whether or not anybody touched it, with the columns of the items table only.

    Beside the splits, `rejected/` has the rows that were put aside. Custom properties of the artifact: `rows_read`,
    `rows_rejected`, `rows_merged`, `rows_negatives`, `rows_train`, `rows_eval` and `rows_catalogue`, where read +
    negatives = train + eval + rejected + merged; and for each lookup table `rows_rejected_items` and
    `rows_merged_items` (left out as duplicates), where names are those of `Sources.tables()` with `_` for `.`.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        input_base: str | data_types.RuntimeParameter,
        data: Data,
        schema: schema_pb2.Schema,
        code_version: str,
    ) -> None:
        """Builds the component.

        Args:
            input_base: The folder that the recipe's file patterns are relative to.
            data: The recipe's data section. Patterns may hold TFX's {SPAN}, {VERSION} and date placeholders.
            schema: The curated schema; every feature in it becomes a feature of the examples.
            code_version: Changes whenever this component's code does, so that results of older code are not reused.
        """
        # To TFX's driver a table is an input split: it fingerprints the files of each and resolves spans and versions.
        tables = [
            example_gen_pb2.Input.Split(name=name, pattern=source.files)
            for name, source in data.sources.tables().items()
        ]
        super().__init__(
            input_base=input_base,
            input_config=example_gen_pb2.Input(splits=tables),
            # Empty, not left out: TFX would fill in a hash split of its own. The executor does the splitting.
            output_config=example_gen_pb2.Output(),
            custom_config=encode_config(data, schema, code_version),
        )
