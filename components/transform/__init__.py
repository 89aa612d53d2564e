"""Raw columns to numbers, generated from the recipe's feature list."""
