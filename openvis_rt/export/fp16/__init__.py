"""FP32 graphs converted to strongly typed FP16."""
