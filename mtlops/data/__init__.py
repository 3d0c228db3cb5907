"""Data: packages and files in, normalised rows, leakage-free splits and windows out."""
