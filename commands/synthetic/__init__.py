"""InteractionBlock of any size with a structure that is known, so that the best possible figures are known too.

`planted.py` draws the users, the items and their tastes, `choices.py` streams the interactions, `broken.py` breaks
lines on request, `best.py` computes the best figures that any model can reach, `side_tables.py` describes users and
items, and `files.py` writes it all; `tandem data synthetic` calls that. `reached.py` tells a run how close it came.
"""
