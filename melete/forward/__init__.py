"""A lean forward pass of known architectures: the numbers of transformers, with less computed to get them."""
