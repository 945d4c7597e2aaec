"""lit_cnn: experiments with convolutional networks, tracked, paired and with error bars."""

import sys

from lit_cnn.core.moved import MovedModules

__version__ = "0.2.0"

sys.meta_path.insert(0, MovedModules())
