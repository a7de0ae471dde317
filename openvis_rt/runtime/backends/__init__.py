"""One module for each backend, behind one Session protocol and a registry."""
