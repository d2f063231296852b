//! A relay for the Kubernetes audit webhook.

pub mod config;
