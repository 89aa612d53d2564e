"""Kubeflow Pipelines v2: the compiler, and the entry point of the containers."""
