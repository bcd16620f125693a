"""The model: nodes, crops, network, weights and encoder, on numpy and keras."""
