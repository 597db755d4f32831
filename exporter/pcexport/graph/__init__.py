"""Making and checking `embedder.onnx`: tracing, precisions, what TensorRT asks of it, parity."""
