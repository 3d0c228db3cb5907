"""The Kubeflow pipelines: compiled, run on this machine, submitted and scheduled by `python -m pipelines`."""
