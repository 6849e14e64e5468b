"""Azure AI: who is logged in, where models are registered, and bytes to and from there.

Nothing here imports the `azure` packages before a function that needs them is called: they take two seconds.
The page asks through `ask`, in a process of its own.
"""
