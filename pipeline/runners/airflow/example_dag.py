"""DAG file for the recipe that the TANDEM_* variables specify; copy it into Airflow's DAG folder.

For a second recipe, copy it under another name and pass the folders and the schedule as arguments:

    dag = recipe_dag("/srv/shop/recipe", data="/srv/shop/data", workdir="/srv/shop/work", schedule="@daily")
"""

from pipeline.runners.airflow import recipe_dag

dag = recipe_dag()
