"""Many videos, many machines: batches of videos, and a model repository for NVIDIA Triton."""
