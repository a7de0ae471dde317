"""ONNX graphs to TensorRT engines, each with a sidecar that says what was built and from what."""
