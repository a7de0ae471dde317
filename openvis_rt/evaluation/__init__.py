"""Video instance segmentation metrics: annotation files, results files, matching, reports."""
