//! The integration tests. They run the real program between raw clients and consumers that are real
//! or scripted.
//!
//! All tests are one binary, with a folder for each part of the program's promises and a file for
//! each promise; `support` holds what the tests share. A test ends with `Relay::finish`, which
//! checks the conservation of events: `event_total` equals the sum of the events that left, that
//! wait and that were counted as lost.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "threads, real clocks and blocking sockets: the runtime is in the process under test"
)]
#![allow(
    clippy::unwrap_used,
    clippy::panic_in_result_fn,
    clippy::print_stderr,
    reason = "a test that cannot go on panics, and says what it saw"
)]

/// The cost of delivering events.
mod deliver {
    mod instructions;
}

/// How events come in: requests, listeners, limits, the Kafka source, and what decoding costs.
mod ingest {
    mod answers;
    mod instructions;
    #[cfg(feature = "kafka")]
    mod kafka_source;
    mod large_bodies;
    mod limits;
    mod post_quantum;
    mod tls;
    mod tls_failures;

    /// They need peers, or root.
    mod peers {
        #[cfg(feature = "kafka")]
        mod kafka_broker;
        mod post_quantum;
    }
}

/// The queue in memory and on disk: back-pressure, durability, crashes and faults of disks.
mod queue {
    mod backpressure;
    mod bit_flips;
    mod disk_bounds;
    mod durability;
    mod kills;
    mod optional;
    mod spool_start;

    /// They need peers, or root.
    mod peers {
        mod disk_faults;
    }
}

/// How events go out: each protocol, its consumers, and the faults of consumers and networks.
mod outputs {
    mod acknowledgements;
    mod any_store;
    mod check_connect;
    mod connection_age;
    mod dead_letters;
    mod detector;
    mod elasticsearch;
    mod failover;
    mod faults;
    mod http_early;
    mod http_endpoints;
    mod http_output;
    mod http_refused;
    mod http_tls;
    mod ibm_cloud_logs;
    #[cfg(feature = "kafka")]
    mod kafka_output;
    mod loki;
    mod lumberjack;
    mod otlp;
    mod s3;
    mod set_aside;
    mod splunk_hec;
    mod stdout;
    mod tcp;

    /// They need peers, or root.
    mod peers {
        mod dns_names;
        mod egress_proxy;
        #[cfg(feature = "kafka")]
        mod kafka_broker;
        #[cfg(feature = "kafka")]
        mod kafka_tls;
        mod peers_work;
        mod relp;
        mod syslog;
    }
}

/// The log that proves which events came in.
mod evidence {
    mod alarms;
    mod believed;
    mod checkpoints;
    mod copy;
    mod digest;
    mod hostile;
    mod recorded;
    mod tampered;
    mod verify;
    mod witness;

    /// They need peers, or root.
    mod peers {
        mod crashes;
        mod random;
    }
}

/// Which events leave, and what is removed from each of them: filters and audit policies.
mod filter {
    mod forwarded;
    mod policy;
    mod policy_cost;
    mod repeated;
    mod shapes;
}

/// The commands, metrics, log, alerts, pages, reload and shutdown that an operator works with.
mod operate {
    mod admin;
    mod admin_access;
    mod alerts;
    mod apiservers;
    mod check;
    mod check_warnings;
    mod command_line;
    mod commands;
    mod commands_queue;
    mod dashboard;
    mod demo;
    mod doctor;
    mod doctor_relays;
    mod drain;
    mod healthcheck;
    mod lives;
    mod log;
    mod losses;
    mod named_files;
    mod reload;
    mod replay;
    mod replay_directory;
    mod replay_follow;
    mod restrict;
    mod secrets;
    mod seen;
    mod shutdown;
    mod status;
    mod tap;
    mod top;
    mod troubles;
    mod upgrade;
    mod version;
    mod volume;

    /// They need peers, or root.
    mod peers {
        mod migrate;
        mod page;
    }
}

/// The shipped configs and the scripts of `deploy/`.
mod deploy {
    mod cluster;
    mod configs;
    mod configs_http;
    mod way_back;

    /// They need peers, or root.
    mod peers {
        mod connect;
    }
}

/// The documents and the sources themselves: what the documents say is what the program does.
mod docs {
    mod auditors;
    mod captures;
    mod chart;
    mod dependencies;
    mod documents;
    mod examples;
    mod exit_statuses;
    mod first_commands;
    mod layers;
    mod links;
    mod losses;
    mod metrics;
    mod moving_in;
    pub(crate) mod pages;
    mod profiles;
    mod published;
    pub(crate) mod reference;
    mod sizing;
    mod status_json;
    mod threat_model;
    mod words;
}

mod support;
