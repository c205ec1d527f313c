//! The control plane: one tokio thread that asks the API so that shards need not.
