"""PyTorch networks to a bundle of ONNX graphs (extra ``export``)."""
