//! The memory of idle connections. kube-apiserver keeps its connections open, and sends a batch
//! only now and then.

use crate::proxy::{Mode, Route, Through};
use crate::report::{Column, Detail, column, over, table};
use crate::run::{KEPT, Kept};

/// The proxies whose connections are measured.
pub(crate) const THROUGHS: [Through; 4] = [
    Through::Relay(Route::Http, Mode::Memory).haproxy(),
    Through::Relay(Route::Http, Mode::Memory),
    Through::Relay(Route::Tls, Mode::Memory).haproxy(),
    Through::Relay(Route::Tls, Mode::Memory),
];

/// The results of all proxies.
#[derive(Default)]
pub(crate) struct Idle {
    pub(crate) work: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// The results of one proxy.
pub(crate) struct Row {
    pub(crate) through: Through,
    /// One sample for each round.
    pub(crate) samples: Vec<Kept>,
}

impl Idle {
    pub(crate) fn table(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let columns: [Column<'_, Row>; 3] = [
            column("through", |row: &Row| row.through.name()),
            column("RSS idle MiB", |row: &Row| over(&row.samples, |it| it.rss_idle).show(1)),
            column("for each connection KiB", |row: &Row| over(&row.samples, |it| it.each).show(1)),
        ];
        format!("\n### {KEPT} idle connections that carried one request: {}\n\n", self.work)
            + &table(self.rows.iter(), &columns, Detail::All)
    }
}
