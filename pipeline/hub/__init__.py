"""The Hugging Face Hub as a place to publish to."""
