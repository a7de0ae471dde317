"""PyTorch reference networks, from the papers and the public behaviour (extra ``export``)."""
