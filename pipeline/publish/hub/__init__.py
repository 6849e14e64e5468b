"""The Hugging Face Hub as a target."""
