"""`tandem init`: infers a recipe and a schema from CSVs."""
