"""Storage: geometry, volumes and the embedding store, on numpy and tensorstore."""
