"""From a trained model to one ONNX graph that serves all tasks."""
