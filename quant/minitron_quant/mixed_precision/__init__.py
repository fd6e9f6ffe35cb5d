"""Mixed precision for a size: from the sensitivity of each tensor to the best mix of types."""
