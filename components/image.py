"""The container image of every component, until the compiler names another one."""

IMAGE = "mtlops:0.1.0"
"""Local name of the image that this version of mtlops is built into; `MTLOPS_IMAGE` replaces it at compile time."""
