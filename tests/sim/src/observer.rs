//! An observer who asks the relay for its metrics and its status at any time, even while the relay
//! starts, reloads, drains or is in trouble.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::kernel;
use crate::operator::page;
use crate::oracle::said::{Moment, Said};
use crate::support::metrics::Metrics;

/// When the current life of the relay began. Clones refer to the same value.
#[derive(Clone, Default)]
pub(crate) struct Begin(Arc<Mutex<Duration>>);

impl Begin {
    pub(crate) fn get(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a life begins now.
    pub(crate) fn is_now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = kernel::now();
    }
}

/// The running observer.
pub(crate) struct Observer(JoinHandle<Vec<Said>>);

impl Observer {
    /// Asks at each of these times, or as soon as the previous answer has come.
    pub(crate) fn start(times: Vec<Duration>, started: Begin) -> Self {
        let ask = move |at: Duration| {
            std::thread::sleep(at.saturating_sub(kernel::now()));
            look(&started)
        };
        let work = move || times.into_iter().filter_map(ask).collect();
        let thread = std::thread::Builder::new().name("observer".to_owned()).spawn(work);
        Self(thread.expect("a thread"))
    }

    /// Waits for the last answer, and returns all answers.
    pub(crate) fn finish(self) -> Vec<Said> {
        self.0.join().expect("it does not panic")
    }
}

/// Asks once. Returns `None` unless one life of the relay has given both answers.
fn look(begin: &Begin) -> Option<Said> {
    let (started, asked) = (begin.get(), kernel::now());
    let metrics = Metrics::parse(&page("/metrics")?);
    let status = serde_json::from_str(&page("/status")?).ok();
    let answered = kernel::now();
    (begin.get() == started).then_some(Said {
        started,
        asked,
        answered,
        moment: Moment::Any,
        metrics,
        status,
    })
}
