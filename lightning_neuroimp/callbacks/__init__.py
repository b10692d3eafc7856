"""Lightning: when a measurement is made, on which process, and where its outcome goes to."""
