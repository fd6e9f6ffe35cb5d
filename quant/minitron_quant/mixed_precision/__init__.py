"""The size dial: what each tensor's error costs, measured, and the best mix of types for a size."""
