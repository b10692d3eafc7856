"""Find which samples belong together, keep the clusters' identities over epochs, and deal each one into two halves."""
