"""From a checkpoint and an adapter to a graph for ONNX Runtime GenAI."""
