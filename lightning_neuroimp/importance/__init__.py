"""Score every neuron of a site for every sample, and average the scores over the samples of each cluster."""
