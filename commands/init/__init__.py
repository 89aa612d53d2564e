"""`tandem init`: looks at CSVs and writes the smallest recipe and schema that run on them."""
