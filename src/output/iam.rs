//! Tokens of IBM Cloud Identity and Access Management (IAM), which the services of IBM Cloud want
//! in each request.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use url::form_urlencoded;

use super::http::service::Service;
use super::http::service::ServiceError;
use crate::config;
use crate::delivery::ProbeError;
use crate::delivery::failure::Failure;
use crate::delivery::retry::Retry;
use crate::telemetry::AttemptError;

/// The path of the request for a token.
const PATH: &str = "/identity/token";

/// The longest life of a token that is believed. IAM's tokens live for an hour.
const LIFE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A token that a service has refused is renewed at once, unless a request to IAM began less than
/// this time ago.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// The pause after a panic of the task that renews tokens, before the task goes on.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// All [`Iam`]s that are in use. Outputs are prepared one by one, and a reload prepares new ones
/// while the old ones still run, so they find a common token here. There are as many entries as
/// different settings, because each call of [`Iam::shared`] removes those that are not used.
static IN_USE: Mutex<Vec<Weak<Iam>>> = Mutex::new(Vec::new());

/// Everything that a request for a token depends on. Outputs with equal settings share a token.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct IamSettings {
    pub(super) credentials: Credentials,
    pub(super) service: Service,
    /// The pauses between failed requests.
    pub(super) retry: config::Retry,
}

/// The credentials by which the relay gets tokens. The files are read again for each request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Credentials {
    /// The API key of a user or a service ID.
    ApiKey {
        /// The file that holds the key.
        file: PathBuf,
    },
    /// A trusted profile, which trusts the service account of the pod.
    TrustedProfile {
        /// The profile's ID.
        id: String,
        /// The file with the projected token of the service account, which the kubelet renews.
        token_file: PathBuf,
    },
}

impl Credentials {
    /// Reads the file, and returns the form that asks for a token, and a hash of the file's secret.
    /// The error text names the file, and contains nothing that is in the file. Blocks the thread.
    fn form(&self) -> Result<(String, u64), String> {
        let (Self::ApiKey { file } | Self::TrustedProfile { token_file: file, .. }) = self;
        let secret = config::read_token(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let mut form = form_urlencoded::Serializer::new(String::new());
        match self {
            Self::ApiKey { .. } => {
                form.append_pair("grant_type", "urn:ibm:params:oauth:grant-type:apikey");
                form.append_pair("apikey", &secret);
            }
            Self::TrustedProfile { id, .. } => {
                form.append_pair("grant_type", "urn:ibm:params:oauth:grant-type:cr-token");
                form.append_pair("cr_token", &secret);
                form.append_pair("profile_id", id);
            }
        }
        Ok((form.finish(), rapidhash::v3::rapidhash_v3(secret.as_bytes())))
    }

    /// Returns the text for an operator whose credentials IAM refuses.
    fn refusal(&self) -> String {
        match self {
            Self::ApiKey { file } => {
                format!("IAM does not accept the API key in {}", file.display())
            }
            Self::TrustedProfile { id, token_file } => {
                let file = token_file.display();
                format!("IAM does not accept the token in {file} for the trusted profile {id}")
            }
        }
    }
}

/// A token.
struct Token {
    /// The value of the header `Authorization`.
    authorization: HeaderValue,
    expires: Instant,
    /// When the next token is asked for: when four fifths of the life are over.
    renewed: Instant,
}

/// The newest token, and the state of the requests to IAM.
#[derive(Default)]
struct State {
    /// The newest token, which may have expired; `None` if there was none yet.
    token: Option<Token>,
    /// The number of requests to IAM that have ended.
    asked: u64,
    /// The time when the last request to IAM began, or was ordered by [`Iam::refused`].
    began: Option<Instant>,
    /// `true`: a service has refused a token, and has taken none since then.
    was_refused: bool,
    /// The failure of the last request to IAM; `None` if it gave a token, or if none has ended.
    failure: Option<Failure>,
}

impl State {
    /// Returns the header of the token; `None` if there is no token, or if it has expired.
    fn authorization(&self) -> Option<&HeaderValue> {
        let token = self.token.as_ref().filter(|token| Instant::now() < token.expires);
        token.map(|token| &token.authorization)
    }
}

/// The part of an [`Iam`] that its task uses.
struct Shared {
    settings: IamSettings,
    state: watch::Sender<State>,
    /// Wakes the task, so that it asks for a token at once.
    wake: Notify,
    /// The hash of the secret that was last read for a request; 0 if there was none.
    used: AtomicU64,
}

/// The token for certain credentials. Outputs with the same settings share one `Iam`, and own it
/// together: a background task, which gets the first token and renews it, begins with the first
/// delivery, and ends when the last output drops the `Iam`.
///
/// The task asks for a new token when four fifths of the life of the last one are over. Until the
/// task has the new token, the old one stays in use as long as it lives. If IAM gives no token, the
/// task asks again, with pauses as `retry` in the config says. A service that refuses the token
/// ([`Iam::refused`]) and a secret that has changed ([`Iam::check`]) make the task ask at once. The
/// task never ends by itself, and goes on after a panic.
///
/// Nothing here shows a secret or a token, or logs what IAM has answered except for the status.
pub(super) struct Iam {
    shared: Arc<Shared>,
    /// The task; empty before the first delivery begins.
    task: Mutex<JoinSet<()>>,
}

impl Iam {
    /// Returns the `Iam` with these settings that is in use, or else a new one.
    pub(super) fn shared(settings: IamSettings) -> Arc<Self> {
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.retain(|iam| iam.strong_count() > 0);
        let mut others = in_use.iter().filter_map(Weak::upgrade);
        if let Some(iam) = others.find(|iam| iam.shared.settings == settings) {
            return iam;
        }
        let shared = Shared {
            settings,
            state: watch::Sender::default(),
            wake: Notify::new(),
            used: AtomicU64::new(0),
        };
        let iam = Arc::new(Self { shared: Arc::new(shared), task: Mutex::default() });
        in_use.push(Arc::downgrade(&iam));
        iam
    }

    /// Starts the task, unless it runs already.
    pub(super) fn begin(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.is_empty() {
            let shared = Arc::clone(&self.shared);
            task.spawn(async move {
                while AssertUnwindSafe(shared.renew()).catch_unwind().await.is_err() {
                    tracing::error!(
                        iam = shared.settings.service.base(),
                        "the task that renews the IAM token has panicked, starting it again"
                    );
                    tokio::time::sleep(RESTART_PAUSE).await;
                }
            });
        }
    }

    /// Returns the header `Authorization`, without waiting. The failure says why there is no token
    /// now.
    pub(super) fn authorization(&self) -> Result<HeaderValue, Failure> {
        let state = self.shared.state.borrow();
        if let Some(value) = state.authorization() {
            return Ok(value.clone());
        }
        Err(match &state.failure {
            Some(failure) => {
                Failure::new(failure.reason, format!("no IAM token: {}", failure.message))
            }
            None => {
                let base = self.shared.settings.service.base();
                Failure::new(AttemptError::Timeout, format!("no IAM token yet from {base}"))
            }
        })
    }

    /// Waits for a token: until the next request to IAM has ended, but no longer than
    /// `timeouts.request`. Returns at once if there is a token. The failure says why there is none.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub(super) async fn ready(&self) -> Result<(), Failure> {
        let mut state = self.shared.state.subscribe();
        let asked = state.borrow().asked;
        let known = state.wait_for(|it| it.authorization().is_some() || it.asked != asked);
        tokio::time::timeout(self.shared.settings.service.timeouts.request, known).await.ok();
        self.authorization().map(drop)
    }

    /// Tells that a service has refused the token. The task asks for a new one at once, unless the
    /// last request to IAM is too recent or has failed: the task then asks again anyway. If a
    /// service refuses the new token too, the settings are at fault, and the task asks only when
    /// the token is to be renewed, or when the credentials change.
    pub(super) fn refused(&self) {
        self.shared.state.send_if_modified(|state| {
            let is_old = state.began.is_some_and(|began| began.elapsed() >= REFUSED_PAUSE);
            if is_old && state.failure.is_none() && !state.was_refused {
                state.was_refused = true;
                state.began = Some(Instant::now());
                self.shared.wake.notify_one();
            }
            false
        });
    }

    /// Tells that a service has taken the token.
    pub(super) fn accepted(&self) {
        if self.shared.state.borrow().was_refused {
            self.shared.state.send_modify(|state| state.was_refused = false);
        }
    }

    /// Checks that the file of the credentials can be used. If its secret is not the one that was
    /// last shown to IAM, the task asks for a new token at once. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The text names the file, and contains nothing that is in the file.
    pub(super) fn check(&self) -> Result<(), String> {
        let (_, hash) = self.shared.settings.credentials.form()?;
        if ![0, hash].contains(&self.shared.used.load(Ordering::Relaxed)) {
            self.shared.state.send_modify(|state| state.was_refused = false);
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Asks for a token once, and throws it away. Returns the server's name and the result.
    pub(super) async fn probe(&self) -> (String, Result<(), ProbeError>) {
        let result = self.shared.fetch().await;
        (self.shared.settings.service.base(), result.map(drop).map_err(ProbeError::from))
    }
}

/// The answer of IAM that has a token.
#[derive(Deserialize)]
struct Answer {
    access_token: String,
    /// The life of the token in seconds.
    expires_in: u64,
}

impl Shared {
    /// Runs the loop of the task, which never ends.
    async fn renew(&self) {
        let mut retry = Retry::new(&self.settings.retry);
        loop {
            self.state.send_modify(|state| state.began = Some(Instant::now()));
            let result = self.fetch().await;
            let next = match &result {
                Ok(token) => {
                    retry.reset();
                    token.renewed
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

    /// Notes the result of a request to IAM, and logs when requests begin to fail, and when they
    /// succeed again.
    fn note(&self, result: Result<Token, Failure>) {
        let iam = self.settings.service.base();
        let failed_before = self.state.borrow().failure.is_some();
        match &result {
            Ok(_) if failed_before => tracing::info!(iam, "IAM gives tokens again"),
            Err(failure) if !failed_before => {
                tracing::warn!(iam, %failure, "IAM gives no token, asking again until it does");
            }
            Ok(_) | Err(_) => {}
        }
        self.state.send_modify(|state| {
            state.asked += 1;
            match result {
                Ok(token) => (state.token, state.failure) = (Some(token), None),
                Err(failure) => state.failure = Some(failure),
            }
        });
    }

    /// Asks IAM for a token.
    async fn fetch(&self) -> Result<Token, Failure> {
        let IamSettings { credentials, service, .. } = &self.settings;
        let wrong = |what: String| Failure::new(AttemptError::Protocol, what);
        let began = Instant::now();
        let read = {
            let credentials = credentials.clone();
            tokio::task::spawn_blocking(move || credentials.form()).await
        };
        let (form, hash) = read.unwrap_or_else(|error| Err(error.to_string())).map_err(wrong)?;
        self.used.store(hash, Ordering::Relaxed);
        let answer = service.post(PATH, "application/x-www-form-urlencoded", form).await;
        let body = answer.map_err(|ServiceError { status, mut failure }| {
            let refusals =
                [StatusCode::BAD_REQUEST, StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
            if status.is_some_and(|status| refusals.contains(&status)) {
                failure.message = format!("{} ({})", credentials.refusal(), failure.message);
            }
            failure
        })?;
        let unclear = || wrong(format!("{}: the answer is not that of IAM", service.base()));
        let Answer { access_token, expires_in } =
            serde_json::from_slice(&body).map_err(|_| unclear())?;
        let header = HeaderValue::from_str(&format!("Bearer {access_token}"));
        let mut authorization = header.map_err(|_| unclear())?;
        if access_token.is_empty() || expires_in == 0 {
            return Err(unclear());
        }
        authorization.set_sensitive(true);
        let life = Duration::from_secs(expires_in).min(LIFE_MAX);
        Ok(Token { authorization, expires: began + life, renewed: began + life * 4 / 5 })
    }
}
