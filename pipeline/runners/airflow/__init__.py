"""Airflow: `recipe_dag` for DAG files, and the processes that its tasks start.

Example:
    from pipeline.runners.airflow import recipe_dag

    dag = recipe_dag("/srv/shop/recipe", data="/srv/shop/data", workdir="/srv/shop/work", schedule="@daily")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.runners.airflow.dag_factory import recipe_dag

__all__ = ["recipe_dag"]


def __getattr__(name: str) -> Any:
    # The processes of tasks import this package, in an environment without Airflow.
    if name in __all__:
        from pipeline.runners.airflow import dag_factory

        return getattr(dag_factory, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
