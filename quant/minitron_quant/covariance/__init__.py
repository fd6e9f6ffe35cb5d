"""Input covariance: Σ xᵀx of the inputs of weights on a calibration text."""
