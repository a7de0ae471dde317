"""What is known of each system, with the standard library alone."""
