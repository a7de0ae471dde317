"""Many videos and many machines: a model repository for NVIDIA Triton and its client."""
