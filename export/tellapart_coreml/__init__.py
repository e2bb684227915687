"""Core ML packages read, checked and run without an Apple device; never torch."""
