//! The format against changed, torn and missing bytes.
