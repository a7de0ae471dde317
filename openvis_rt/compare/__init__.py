"""How close two results are: the one place that says so."""
