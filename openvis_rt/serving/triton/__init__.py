"""A bundle as a model repository of NVIDIA Triton, and what runs inside of that server."""
