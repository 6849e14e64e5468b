"""Foundry Local, Microsoft's runtime for devices, as a target."""
