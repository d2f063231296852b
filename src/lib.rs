//! A relay for the Kubernetes audit webhook.
