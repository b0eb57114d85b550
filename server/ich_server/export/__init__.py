"""A finished model for programs that are not ours: named weights, ONNX, a MONAI bundle, and the card that says what it is."""
