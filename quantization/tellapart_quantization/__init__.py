"""Bundle in, INT8 bundle out, judged against a budget. Needs onnx and onnxruntime, never torch."""
