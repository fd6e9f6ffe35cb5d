"""GPTQ: codes chosen column by column, later columns compensate for the rounding error of earlier.

With the covariance H of a layer's input, the error of an encoded row is e H eᵀ. H = R Rᵀ with R
upper triangular makes it a sum over columns, each of which can be minimized in turn: the target of
a column is its weight plus a correction for the errors before it. Sources: Optimal Brain
Quantization, GPTQ (arXiv 2210.17323), LDLQ (2307.13304).
"""
