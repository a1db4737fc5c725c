"""The four stages as ONNX graphs."""
