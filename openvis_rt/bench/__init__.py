"""``openvis bench``: a bundle on several backends in turn, with all that a reader must know."""
