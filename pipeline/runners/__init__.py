"""How the DAG is run; one module an orchestrator. What the DAG is stands in `pipeline/dag.py`."""
