"""Whether a bundle computes on this machine what PyTorch computed: stage by stage, then whole."""
