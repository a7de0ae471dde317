"""The whole path in small: the trained miniatures over a generated video that they never saw."""
