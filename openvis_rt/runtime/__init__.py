"""The runtime: numpy, scipy and one backend; it never imports torch or onnx."""
