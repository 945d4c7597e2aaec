"""lit_cnn: experiments with convolutional networks, tracked, paired and with error bars."""

__version__ = "0.1.0"
