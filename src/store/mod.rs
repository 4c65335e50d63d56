//! Bytes on disk, keyed by content. Knows no stage and no graph.
