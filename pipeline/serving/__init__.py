"""What listens for requests: a model at an OpenAI-compatible endpoint, and what the page shares with it."""
