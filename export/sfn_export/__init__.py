"""Exports a trained run: ONNX graphs proven equal to PyTorch, packed into a bundle."""
