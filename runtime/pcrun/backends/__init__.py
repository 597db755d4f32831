"""What runs `embedder.onnx`: onnxruntime, OpenVINO, native TensorRT engines, behind one interface."""
