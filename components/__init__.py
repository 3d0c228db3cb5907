"""Kubeflow components, one a step: each calls `mtlops.steps.<step>` and names its inputs and outputs.

Only a component's function travels to the cluster, as text: it imports what it needs inside its body, and a
module here imports nothing but the standard library and kfp.
"""
