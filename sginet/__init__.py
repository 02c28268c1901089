import warnings

# fastai 2.8 still calls it on import; nobody who uses sginet can do anything about that
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

__version__ = "0.1.0"
