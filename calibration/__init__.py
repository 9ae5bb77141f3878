"""Chooses a plan: ``python -m calibration --threshold 0.05``."""
