"""Pusher: copies a blessed model to the push destination as a numbered version, atomically."""
