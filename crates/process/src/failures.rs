//! Reports the end of a task or a thread without which the process cannot continue.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::watch;

/// The first failure of a task or thread that the process needs until its end. After a failure, the
/// relay drains and exits with an error. All clones share one record.
#[derive(Clone, Default)]
pub struct Failures {
    first: watch::Sender<Option<String>>,
}

impl Failures {
    /// Logs a failure, and stores its description if it is the first one.
    pub fn report(&self, error: String) {
        tracing::error!(
            error,
            "a task that the relay needs has failed: the relay drains and exits with 1"
        );
        self.first.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(error);
            is_first
        });
    }

    /// The description of the first failure; `None` if there was no failure.
    pub fn first(&self) -> Option<String> {
        self.first.borrow().clone()
    }

    /// Waits for the first failure and returns its description.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no failure is lost: the next call returns it.
    pub async fn wait(&self) -> String {
        let mut first = self.first.subscribe();
        match first.wait_for(Option::is_some).await.ok().and_then(|error| error.clone()) {
            Some(error) => error,
            // `self` holds the sender, so the channel cannot close.
            None => std::future::pending().await,
        }
    }

    /// Wraps `task`. If it panics, a failure is reported whose description begins with `name`. A
    /// task that returns is not a failure.
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
