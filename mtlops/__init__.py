"""mtlops: MLOps for several related prediction tasks on one shared encoder, one small adapter per task."""

__version__ = "0.1.0"
