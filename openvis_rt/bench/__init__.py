"""``openvis bench``: one bundle on several backends in turn, and what a reader needs to believe it."""
