"""ExampleValidator: fails on anomalies between the data and the curated schema."""
