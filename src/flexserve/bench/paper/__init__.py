"""`flexserve bench paper`: FlexServe beside its baselines, over the workloads of the paper."""
