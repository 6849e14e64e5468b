"""Is one model better than another on the same rows? Statistics of pairs, and a verdict in words.

Most of it imports numpy and scipy, so the page never imports it and reads what a stage wrote; `checks`
imports neither, because a recipe is read by it.
"""
