//! The names that nearly every test uses: `use crate::support::prelude::*;`.

pub(crate) use std::collections::{BTreeMap, BTreeSet};
pub(crate) use std::net::SocketAddr;
pub(crate) use std::path::{Path, PathBuf};
pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Mutex};
pub(crate) use std::time::{Duration, Instant};

pub(crate) use serde_json::{Value, json};
pub(crate) use tempfile::TempDir;

pub(crate) use super::answers::assert_accepted;
pub(crate) use super::certificates::{Certificates, Pair};
pub(crate) use super::chance::{number_from, rng};
pub(crate) use super::common::{
    all_but, errors, errors_by_reason, give_up, lost, of_output, post, post_batch, post_batches,
    post_corpus, stream_output, tls_key, wait_for_errors,
};
pub(crate) use super::corpus::{corpus, events_of, generated_batch};
pub(crate) use super::http::Client;
pub(crate) use super::http_sink::{Answer, HttpSink, Request};
pub(crate) use super::metrics::Metrics;
pub(crate) use super::needs::needs;
pub(crate) use super::peers::{Security, program};
pub(crate) use super::relay::{
    BASE, Backlog, Relay, run_command, run_command_with, spawn_command, unrestricted, with_admin,
};
pub(crate) use super::requests::{
    QUICK, accepted_events, assert_in_order, assert_none_missing, assert_same_set, events_in,
    received_events, refusing, to_http, to_sink,
};
pub(crate) use super::said::{Said, said, said_to};
pub(crate) use super::senders::{Bodies, Senders};
pub(crate) use super::sequence::assert_covers;
pub(crate) use super::server::{Options, Server};
pub(crate) use super::spool::Spool;
pub(crate) use super::tally::Tallying;
pub(crate) use super::tcp_sink::{Framing, TcpSink};
pub(crate) use super::witness::Witness;
pub(crate) use super::{
    PATIENCE, binary, free_port, http, messages, numbered, repository, text, wait_for, wait_until,
};
