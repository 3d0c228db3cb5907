"""Validation: the promises that params.yaml makes about prepared data, checked with Great Expectations."""
