"""Copy this file into Airflow's DAG folder: a DAG for the recipe that the TANDEM_* variables name.

For a second recipe copy it again under another name, and write its folders and schedule as arguments instead:

    dag = recipe_dag("/srv/shop/recipe", data="/srv/shop/data", workdir="/srv/shop/work", schedule="@daily")
"""

from pipeline.runners.airflow import recipe_dag

dag = recipe_dag()
