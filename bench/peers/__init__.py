"""One file a peer, in full: `train(make, x, y, steps, folder)` trains a fresh model and gives it back.

All take AdamW (fused where it is PyTorch's) at 1e-3, batches of 64 and a clipped gradient norm; none validates between
the first step and the last.
"""
