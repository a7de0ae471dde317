"""Files of weights: read safely, recognised, put into models."""
