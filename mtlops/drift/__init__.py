"""Drift of columns against a reference: profiles that merge in any order, tests with an effect floor, correction."""
