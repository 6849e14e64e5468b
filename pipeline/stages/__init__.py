"""The stages of a run: their options, checks, workflows and results; what a run executes and reuses."""
