"""ImportSchemaGen: imports the curated schema into the pipeline."""
