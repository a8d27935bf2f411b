"""The object cluster: drives, shards, logs, the root, transport and healing. Knows nothing of names or faces."""
