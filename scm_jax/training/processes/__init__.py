"""Several processes of one training: start-up, peers and signals."""
