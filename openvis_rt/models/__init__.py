"""PyTorch reference networks, written from the papers and the public behaviour (extra ``export``)."""
