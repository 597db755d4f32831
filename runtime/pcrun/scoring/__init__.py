"""From patch embeddings to a certified image score, a mask and an anomaly map."""
