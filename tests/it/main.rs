//! The integration tests. They run the real program between raw clients and real or scripted
//! consumers.
//!
//! All tests are one binary. Each folder is a part of the program's promises, and each file is one
//! promise; `support` is the code that they share. Most tests end with `Relay::finish`, which
//! checks the conservation of events: each accepted event is delivered, waiting, set aside,
//! filtered or counted as lost.

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

/// Ingest: requests, listeners, limits, the Kafka source, and the cost of decoding.
mod ingest {
    mod answers;
    mod instructions;
    #[cfg(feature = "kafka")]
    mod kafka_source;
    mod large_bodies;
    mod limits;
    mod one_of_many;
    mod post_quantum;
    mod repeated;
    mod tls;
    mod tls_failures;

    /// Tests that need peers or root.
    mod peers {
        #[cfg(feature = "kafka")]
        mod kafka_broker;
        mod post_quantum;
    }
}

/// The queue in memory and on disk: back-pressure, durability, crashes and disk faults.
mod queue {
    mod backpressure;
    mod damage;
    mod disk_bounds;
    mod durability;
    mod kills;
    mod optional;
    mod spool_start;

    /// Tests that need peers or root.
    mod peers {
        mod disk_faults;
    }
}

/// The outputs: each protocol, its consumers, and the faults of consumers and networks.
mod outputs {
    mod acknowledgements;
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
    mod turned_down;

    /// Tests that need peers or root.
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

/// The evidence log, which proves which events the relay has received.
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
}

/// Filters and audit policies: which events are forwarded, and what is removed from them.
mod filter {
    mod forwarded;
    mod policy;
    mod policy_cost;
    mod repeated;
    mod shapes;
}

/// Operation: the commands, metrics, log, alerts, pages, reload and shutdown.
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
    mod manual;
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

    /// Tests that need peers or root.
    mod peers {
        mod migrate;
        mod month;
        mod notifications;
        mod page;
    }
}

/// The shipped configs and the scripts of `deploy/`.
mod deploy {
    mod cluster;
    mod configs;
    mod configs_http;

    /// Tests that need peers or root.
    mod peers {
        mod connect;
        mod connect_troubles;
    }
}

/// The documents and the sources. The documents must agree with the program.
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
    mod metrics;
    mod moving_in;
    pub(crate) mod pages;
    mod profiles;
    mod published;
    pub(crate) mod reference;
    mod sizing;
    mod status_json;
    mod threat_model;
}

mod support;
