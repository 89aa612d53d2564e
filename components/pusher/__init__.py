"""Writes a blessed model as an immutable numbered version, atomically."""
