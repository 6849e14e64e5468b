"""Training an adapter on the quantized model."""
