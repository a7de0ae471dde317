"""Reading, drawing and writing videos and results."""
