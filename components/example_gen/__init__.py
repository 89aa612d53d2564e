"""InteractionExampleGen reads tables and writes tf.Examples in the splits `train`, `eval` and `catalogue`.

Import from the modules; this file imports nothing, so that resolving the sources does not import TFX.
"""
