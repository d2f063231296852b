//! The limits and settings that all listeners share.

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioExecutor;

use config::Acknowledge;

/// The maximum size in bytes of an HTTP/1 request's head, and of the connection's read buffer. With
/// hyper's default of 408 KiB, 4,096 connections that send their heads slowly would take 1.6 GiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The maximum number of open streams of one h2 connection. kube-apiserver was seen to use 22.
const STREAMS_MAX: u32 = 100;
/// The largest size in bytes of all headers of one h2 request together.
const HEADER_LIST_MAX: u32 = 16 * 1024;
/// The flow-control window of one h2 stream in bytes: a batch of 1 MiB needs no window update.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The flow-control window in bytes that all streams of one h2 connection share.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// The part of the config that all listeners share. A reload replaces it as a whole. A request
/// keeps the policy that was valid when it began, and a connection the one with which it was
/// accepted, except that new deadlines hold immediately.
pub(super) struct Policy {
    pub(super) limits: config::Limits,
    pub(super) queue: config::Queue,
    pub(super) http1: http1::Builder,
    pub(super) http2: http2::Builder<TokioExecutor>,
}

impl Policy {
    /// Makes the policy with hyper's settings for HTTP/1 and h2.
    ///
    /// A sender that has shut down its write side still gets its answer, unless `acknowledge` is
    /// `delivered`: answers may then take seconds, and hyper cannot tell such a sender from one
    /// that has gone, so it drops the request.
    ///
    /// The limit of 100 headers for each request is hyper's default. It is not set explicitly,
    /// because hyper would then fill two tables of 100 entries for each request.
    pub(super) fn new(limits: &config::Limits, queue: &config::Queue) -> Self {
        let (mut http1, mut http2) =
            (http1::Builder::new(), http2::Builder::new(TokioExecutor::new()));
        http1
            .max_buf_size(HEAD_BYTES_MAX)
            .header_read_timeout(None)
            .half_close(queue.acknowledge != Acknowledge::Delivered);
        http2
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_LIST_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Self { limits: limits.clone(), queue: queue.clone(), http1, http2 }
    }
}
