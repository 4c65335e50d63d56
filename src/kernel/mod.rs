//! One file per kernel: the op, its CPU twin (the definition) and its launch.
