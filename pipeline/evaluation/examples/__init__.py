"""The table of examples of a run: what was asked and expected, what both sides answered, and their losses.

Read by processes of our own (see `pipeline.runs.check_pool`), so nothing here imports numpy.
"""
