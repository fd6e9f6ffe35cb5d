"""Job files and what they describe: stages that are done once, here or on a cluster."""
