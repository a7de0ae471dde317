"""ONNX graphs to TensorRT plans, each with a sidecar that says what was built and from what."""
