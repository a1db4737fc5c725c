"""The Byte Latent Transformer as one of the architectures; its code is that of `bundle` and `runtime`."""
