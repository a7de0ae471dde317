"""A bundle: graphs, and the manifest that says what is in it and how to drive it."""
