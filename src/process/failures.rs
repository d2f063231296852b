//! What the process can't go on without: tasks and threads that run until they are told to end.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::watch;

/// Notes the first task or thread that has ended although the process needs it. `relay` waits for
/// that, drains, and ends the process with an error: a relay whose accept loop or deadlines are
/// gone looks well and is not.
///
/// Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Failures {
    /// Why the process can't go on; `None` while it can.
    first: watch::Sender<Option<String>>,
}

impl Failures {
    /// Notes a failure, unless there is one already, and logs it at once: the end comes only after
    /// the drain.
    pub fn report(&self, error: String) {
        tracing::error!(error, "what the relay needs has ended: it drains and exits with 1");
        self.first.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(error);
            is_first
        });
    }

    /// The first failure, if there was one.
    #[must_use]
    pub fn first(&self) -> Option<String> {
        self.first.borrow().clone()
    }

    /// Waits for the first failure.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub async fn wait(&self) -> String {
        let mut first = self.first.subscribe();
        match first.wait_for(Option::is_some).await.ok().and_then(|error| error.clone()) {
            Some(error) => error,
            // `self` holds the sender, so that the channel does not end.
            None => std::future::pending().await,
        }
    }

    /// A task that the process needs: where it panics, that is a failure, which begins with `name`.
    /// Its end without a panic is none: it returns when it is told to.
    pub fn watched<T>(&self, name: String, task: T) -> impl Future<Output = ()> + use<T>
    where
        T: Future<Output = ()>,
    {
        let failures = self.clone();
        async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                failures.report(format!("{name} has panicked: {}", said(&*panic)));
            }
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_named_and_only_the_first_counts() {
        let failures = Failures::default();
        failures.watched("a task that returns".to_owned(), async {}).await;
        assert_eq!(failures.first(), None);
        let text = |number: u32| format!("number {number}");
        failures.watched("the first".to_owned(), async move { panic!("{}", text(1)) }).await;
        failures.watched("the second".to_owned(), async { panic!("late") }).await;
        let wanted = "the first has panicked: number 1";
        assert_eq!(failures.wait().await, wanted);
        assert_eq!(failures.clone().first().as_deref(), Some(wanted));
    }
}
