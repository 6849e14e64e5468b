"""The worker and the processes that run stages."""
