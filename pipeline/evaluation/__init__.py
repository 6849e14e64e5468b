"""Is one model better than another on the same rows? Statistics of pairs, and a verdict in words.

Imports numpy and scipy, so the page and the command line never import it: they read what a stage wrote.
"""
