"""Runners of the DAG of `pipeline/dag.py`, one for each orchestrator."""
