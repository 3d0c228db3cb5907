"""mtlops: MLOps for several related prediction tasks on one shared encoder, one small adapter per task."""

__version__ = "0.1.0"

import os

# A thread of PyTorch that waits for another is to sleep, not to spin: on two idle cores training spends 8 % fewer CPU
# seconds at the same pace, beside another busy process half as many. OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
