"""What `verify` consists of: files of JSON, what they declare, adapters, and the process that answers."""
