"""The data card: what a dataset holds that its owner should know before a model learns it.

Not to be made in the web process, for then it imports
numpy, rensa, detect-secrets, phonenumbers and python-stdnum.
"""
