//! The manifest's syntax: names, kinds, untouched tables with their places. Knows no stage.
