"""Writing completions: the `Sampler` protocol and its native form."""
