"""ModelResolver: finds the latest pushed version, with which the Evaluator compares the candidate."""
