"""From patch embeddings to the memory bank: coreset, index, neighbour lists."""
