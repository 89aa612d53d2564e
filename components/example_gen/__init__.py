"""InteractionExampleGen, the DAG's first step: tables in, splits `train`, `eval` and `catalogue` of tf.Examples out.

Import what you need from its module; this file imports nothing, so that checking the CSVs does not wait for TFX.
"""
