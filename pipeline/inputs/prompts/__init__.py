"""A prompt template, and the token ids that training makes of a row."""
