"""The examination of a bundle's graphs before ONNX Runtime opens them."""
