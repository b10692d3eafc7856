"""Write TensorBoard's own kinds of summaries (histograms, pictures, text), and name the tags they are found by."""
