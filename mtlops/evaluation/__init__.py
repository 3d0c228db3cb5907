"""Measuring trained tasks: metrics with bootstrap intervals, baselines on the same rows, and the gate."""
