"""Input covariance: what a calibration text says about how the inputs of weights go together."""
