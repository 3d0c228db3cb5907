"""Answering from a bundle with ONNX Runtime; nothing here knows torch."""
