"""Codes chosen with error feedback: later columns pay back what the rounding of one costs.

With the covariance H of a layer's input, the error of an encoded row is e H eᵀ. H = R Rᵀ with R
upper triangular makes it a sum over columns, each of which can be made small in turn: the target
of a column is its weight plus what the errors before it ask for. Idea: Optimal Brain Quantization,
GPTQ (arXiv 2210.17323), LDLQ (2307.13304).
"""
