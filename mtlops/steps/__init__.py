"""The steps: files in, files out. The command line, DVC and Kubeflow Pipelines all call these functions."""
