"""Which prompts an evaluation asks, and what the float model answers."""
