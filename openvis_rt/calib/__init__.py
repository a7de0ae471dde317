"""INT8: frames of videos to activation ranges, and ranges to graphs with explicit Q/DQ pairs."""
