"""Ask an exported model: what can answer, the processes that do, and their answers."""
