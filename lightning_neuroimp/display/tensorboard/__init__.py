"""display/tensorboard."""
