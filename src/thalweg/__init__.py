"""thalweg: training neural networks by gradient descent, with the knobs chosen on evidence."""

__version__ = "0.1.0"
