"""Synthetic interactions of any size with a known structure, so that the upper bounds of the metrics are known too.

`ground_truth.py` draws the users, the items and their preferences, `sampling.py` samples the interactions block by
block, `malformed_rows.py` inserts malformed lines, `oracle.py` computes the upper bounds, `side_tables.py` generates
the items and users tables, and `files.py` writes all of it; `tandem data synthetic` calls that.
"""
