"""An own forward and backward for Llama-like decoders behind one door, ``weights.decoder_of``."""
