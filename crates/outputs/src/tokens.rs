//! Tokens that a server issues for some time: one task gets the first token and renews it, and
//! requests use the newest one.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use hyper::StatusCode;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http::service::{Question, Service, ServiceError};
use base::lock::lock;
use delivery::failure::Failure;
use delivery::retry::Retry;
use telemetry::AttemptError;

/// The maximum lifetime of a token. A longer lifetime in an answer counts as this one.
const LIFE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A consumer's refusal of a token causes a request for a new one only if the last request began at
/// least this long ago.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// The value of [`REFUSED_PAUSE`] if the refused token was itself requested because of a refusal.
/// Usually the settings are at fault, but the new token may have been revoked too.
const REFUSED_AGAIN_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The pause after a panic of the task that renews tokens.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// A server that issues tokens, and the credentials that the relay shows to it.
pub(crate) trait Issuer: Send + Sync + 'static {
    /// A token as requests need it. Must be cheap to clone.
    type Token: Clone + Send + Sync + 'static;

    /// The name of the server in messages.
    const NAME: &'static str;

    fn service(&self) -> &Service;

    /// Reads the files of the credentials. Returns the request for a token, and a hash of the
    /// secret in the files. Blocks the thread.
    ///
    /// # Errors
    ///
    /// A file can't be used. The text names the file, and never contains its content.
    fn question(&self) -> Result<(Question, u64), String>;

    /// Returns the message for the case that the server refuses the credentials.
    fn refusal(&self) -> String;

    /// Returns the token in an answer, and its lifetime. `None` if the answer has no valid token.
    fn token(&self, answer: &[u8]) -> Option<(Self::Token, Duration)>;
}

/// A token and its times.
struct Held<T> {
    token: T,
    expires: Instant,
    /// The time when the next token is requested: after four fifths of the lifetime.
    renewed: Instant,
}

/// The newest token, and the state of the requests for tokens.
struct State<T> {
    /// The newest token, which may have expired. `None` before the first token.
    held: Option<Held<T>>,
    /// The number of finished requests for a token.
    asked: u64,
    /// The time when the last request began, or was ordered by [`Tokens::refused`].
    began: Option<Instant>,
    /// `true` if a new token was requested because a consumer had refused one. `false` again when a
    /// consumer accepts a token, when the credentials change, or when the next regular request is
    /// due.
    was_refused: bool,
    /// The failure of the last request, if it failed.
    failure: Option<Failure>,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self { held: None, asked: 0, began: None, was_refused: false, failure: None }
    }
}

impl<T> State<T> {
    /// Returns the token, unless it has expired.
    fn token(&self) -> Option<&T> {
        let held = self.held.as_ref().filter(|held| Instant::now() < held.expires);
        held.map(|held| &held.token)
    }

    /// Records that a consumer has refused the token. Returns `true` if the task must request a new
    /// one at once: see [`Tokens::refused`].
    fn refused(&mut self) -> bool {
        let pause = if self.was_refused { REFUSED_AGAIN_PAUSE } else { REFUSED_PAUSE };
        let is_old = self.began.is_some_and(|began| began.elapsed() >= pause);
        let asks = is_old && self.failure.is_none();
        if asks {
            (self.was_refused, self.began) = (true, Some(Instant::now()));
        }
        asks
    }
}

/// The part of [`Tokens`] that the task uses.
struct Shared<I: Issuer> {
    issuer: I,
    state: watch::Sender<State<I::Token>>,
    /// Wakes the task, so that it requests a token at once.
    wake: Notify,
    /// The hash of the secret that was last read for a request; 0 before the first one.
    used: AtomicU64,
}

/// The tokens for certain credentials. Several outputs may share one value. A background task gets
/// the first token and renews it. [`Tokens::begin`] starts the task, which ends when the last
/// output drops the value.
///
/// The task requests a new token after four fifths of the lifetime of the last one. Until the task
/// has the new token, the old one stays in use as long as it is valid. If the server issues no
/// token, the task asks again, with pauses as `retry` in the config says. The task asks without a
/// pause when a consumer refuses the token ([`Tokens::refused`]) or the secret has changed
/// ([`Tokens::check`]). The task never ends by itself, and continues after a panic.
///
/// Nothing here shows a secret or a token, or logs any part of the server's answer except its
/// status.
pub(super) struct Tokens<I: Issuer> {
    shared: Arc<Shared<I>>,
    /// The task; empty before the first call of [`Tokens::begin`].
    task: Mutex<JoinSet<()>>,
}

impl<I: Issuer> Tokens<I> {
    /// Makes the tokens of this issuer. Nothing is requested yet.
    pub(crate) fn new(issuer: I) -> Self {
        let shared = Shared {
            issuer,
            state: watch::Sender::default(),
            wake: Notify::new(),
            used: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), task: Mutex::default() }
    }

    pub(super) fn issuer(&self) -> &I {
        &self.shared.issuer
    }

    /// Starts the task, unless it is already running.
    pub(crate) fn begin(&self) {
        let mut task = lock(&self.task);
        if task.is_empty() {
            let shared = Arc::clone(&self.shared);
            task.spawn(async move {
                while AssertUnwindSafe(shared.renew()).catch_unwind().await.is_err() {
                    tracing::error!(
                        server = shared.issuer.service().base(),
                        "the task that renews the {} token has panicked: it is restarted, please \
                         report this bug",
                        I::NAME
                    );
                    tokio::time::sleep(RESTART_PAUSE).await;
                }
            });
        }
    }

    /// Returns the newest token without waiting, or the reason why there is none.
    pub(crate) fn newest(&self) -> Result<I::Token, Failure> {
        let state = self.shared.state.borrow();
        if let Some(token) = state.token() {
            return Ok(token.clone());
        }
        Err(match &state.failure {
            Some(failure) => no_token(I::NAME, failure),
            None => {
                let base = self.shared.issuer.service().base();
                let message = format!("no {} token yet from {base}", I::NAME);
                Failure::new(AttemptError::Timeout, message)
            }
        })
    }

    /// Waits until there is a token, or until the next request for one has ended, for at most
    /// `timeouts.request`. The failure is the reason why there is no token.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn ready(&self) -> Result<(), Failure> {
        let mut state = self.shared.state.subscribe();
        let asked = state.borrow().asked;
        let known = state.wait_for(|it| it.token().is_some() || it.asked != asked);
        let limit = self.shared.issuer.service().timeouts.request;
        tokio::time::timeout(limit, known).await.ok();
        self.newest().map(drop)
    }

    /// Records that a consumer has refused the token. The task requests a new one at once, except
    /// in three cases:
    ///
    /// - The last request began less than [`REFUSED_PAUSE`] ago: the consumer may have refused the
    ///   previous token. A later refusal counts.
    /// - The last request has failed: the task asks again anyway.
    /// - A token was refused before, none was accepted since, and the last request began less than
    ///   [`REFUSED_AGAIN_PAUSE`] ago: the settings are probably at fault.
    pub(crate) fn refused(&self) {
        self.shared.state.send_if_modified(|state| {
            if state.refused() {
                self.shared.wake.notify_one();
            }
            false
        });
    }

    /// Records that a consumer has accepted the token.
    pub(crate) fn accepted(&self) {
        if self.shared.state.borrow().was_refused {
            self.shared.state.send_modify(|state| state.was_refused = false);
        }
    }

    /// Checks that the file of the credentials can be used. If the secret in the file has changed
    /// since the last request, the task requests a new token at once. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The file can't be used. The text names the file, and never contains its content.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (_, hash) = self.shared.issuer.question()?;
        if ![0, hash].contains(&self.shared.used.load(Ordering::Relaxed)) {
            self.shared.state.send_modify(|state| state.was_refused = false);
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Requests a token once, and discards it. Returns the server's name and the result.
    pub(crate) async fn probe(&self) -> (String, Result<Option<String>, String>) {
        let result = self.shared.fetch().await;
        (
            self.shared.issuer.service().base(),
            result.map(|_| None).map_err(|failure| failure.message),
        )
    }
}

/// Returns the failure of a request that can't be sent, because `failure` has prevented a token. No
/// consumer has seen the request, so its events are not the cause.
fn no_token(server: &str, failure: &Failure) -> Failure {
    let message = format!("no {server} token: {}", failure.message);
    Failure { may_be_the_events: false, ..Failure::new(failure.reason, message) }
}

impl<I: Issuer> Shared<I> {
    /// Runs the loop of the task, which never ends.
    async fn renew(self: &Arc<Self>) {
        let mut retry = Retry::new(&self.issuer.service().retry);
        loop {
            self.state.send_modify(|state| state.began = Some(Instant::now()));
            let result = self.fetch().await;
            let next = match &result {
                Ok(held) => {
                    retry.reset();
                    held.renewed
                }
                Err(failure) => Instant::now() + retry.pause(failure.retry_after),
            };
            self.note(result);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    self.state.send_modify(|state| state.was_refused = false);
                }
                () = self.wake.notified() => {}
            }
        }
    }

    /// Records the result of a request. Logs when requests begin to fail, and when they succeed
    /// again.
    fn note(&self, result: Result<Held<I::Token>, Failure>) {
        let server = self.issuer.service().base();
        let failed_before = self.state.borrow().failure.is_some();
        match &result {
            Ok(_) if failed_before => tracing::info!(server, "{} issues tokens again", I::NAME),
            Err(failure) if !failed_before => tracing::warn!(
                server,
                %failure,
                "cannot get a token from {}, retrying: the output cannot send without a valid \
                 token",
                I::NAME
            ),
            Ok(_) | Err(_) => {}
        }
        self.state.send_modify(|state| {
            state.asked += 1;
            match result {
                Ok(held) => (state.held, state.failure) = (Some(held), None),
                Err(failure) => state.failure = Some(failure),
            }
        });
    }

    async fn fetch(self: &Arc<Self>) -> Result<Held<I::Token>, Failure> {
        let (issuer, service) = (&self.issuer, self.issuer.service());
        let wrong = |what: String| Failure::new(AttemptError::Protocol, what);
        let began = Instant::now();
        let shared = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || shared.issuer.question()).await;
        let read = read.unwrap_or_else(|error| Err(error.to_string()));
        let (question, hash) = read.map_err(wrong)?;
        self.used.store(hash, Ordering::Relaxed);
        let answer = service.post(question).await;
        let body = answer.map_err(|ServiceError { status, mut failure }| {
            let refusals =
                [StatusCode::BAD_REQUEST, StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
            if status.is_some_and(|status| refusals.contains(&status)) {
                failure.message = format!("{} ({})", issuer.refusal(), failure.message);
            }
            failure
        })?;
        let (token, life) = issuer.token(&body).ok_or_else(|| {
            wrong(format!("{}: this is not a response from {}", service.base(), I::NAME))
        })?;
        let life = life.min(LIFE_MAX);
        Ok(Held { token, expires: began + life, renewed: began + life * 4 / 5 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Method: a consumer refuses each token from the beginning, as after two revocations in a row.
    /// The state has no token, because the lifetime of a token does not matter.
    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_refused_after_its_renewal_is_renewed_again_after_minutes() {
        let mut state = State::<()> { began: Some(Instant::now()), ..State::default() };
        let mut renewals = Vec::new();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(15 * 60) {
            tokio::time::advance(Duration::from_secs(1)).await;
            if state.refused() {
                renewals.push(start.elapsed().as_secs());
            }
        }
        assert_eq!(renewals, [5, 305, 605]);
        state.was_refused = false;
        assert!(state.refused(), "a consumer has taken a token meanwhile");
        tokio::time::advance(REFUSED_AGAIN_PAUSE).await;
        state.failure = Some(Failure::new(AttemptError::Timeout, "no answer".to_owned()));
        assert!(!state.refused(), "the task asks again anyway");
    }
    #[test]
    fn a_server_error_of_the_issuer_says_nothing_about_events() {
        let failure = no_token("IAM", &Failure::new(AttemptError::Status5xx, "answered 500"));
        assert_eq!(failure.message, "no IAM token: answered 500");
        assert_eq!((failure.reason, failure.may_be_the_events), (AttemptError::Status5xx, false));
    }
}
