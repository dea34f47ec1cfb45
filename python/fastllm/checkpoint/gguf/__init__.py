"""GGUF files: the reader, the block formats, and the way from metadata to a model of ours."""
