"""What the DAG is and how it is run: recipe, DAG, runners and the `tandem` command."""
