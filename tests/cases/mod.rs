//! What a user sees: whole commands on small projects.
