"""What stages import is imported ahead of them, once."""
