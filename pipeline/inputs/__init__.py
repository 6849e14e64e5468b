"""What a user brings: options, a dataset, a prompt template, a base model, a workspace."""
