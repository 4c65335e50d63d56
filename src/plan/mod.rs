//! The manifest's meaning: decoded stages joined into a graph.
