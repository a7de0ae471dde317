"""What is rewritten in an ONNX graph before TensorRT compiles it."""
