"""Answers and prompts of the Compare tab; runs against each other on the Runs tab."""
