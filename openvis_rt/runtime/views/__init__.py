"""Seeing a run while it runs: a page, a window, a stream to an address."""
