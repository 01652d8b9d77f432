"""Only for the repository of neuralop_sae, whose tests install this package first: not to be copied."""

collect_ignore_glob = ["*"]
