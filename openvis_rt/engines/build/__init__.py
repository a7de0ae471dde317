"""Building engines: an ONNX file of a bundle becomes an engine and its sidecar."""
