"""Checkpoints of Keras training runs. Its content arrives with ckptfmt 0.2; 0.1 has none."""
