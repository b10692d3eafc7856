"""Write TensorBoard's own kinds of summaries: histograms, pictures, text. Scalars go through `callbacks.metrics`."""
