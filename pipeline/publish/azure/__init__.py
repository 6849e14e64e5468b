"""Azure AI: who is logged in, where models are registered, and bytes to and from there.

The `azure` packages are imported only inside functions that need them, because that takes two seconds. The
page asks through `ask`, in a process of its own.
"""
