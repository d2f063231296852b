//! Tokens of IBM Cloud Identity and Access Management (IAM), for requests to services of IBM Cloud.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use hyper::header::HeaderValue;
use serde::Deserialize;
use url::form_urlencoded;

use super::http::api::token_in;
use super::http::service::{Question, Service};
use super::tokens::{Issuer, Tokens};
use base::lock::lock;

const PATH: &str = "/identity/token";

/// The tokens for certain credentials, as values of the header `Authorization`. Outputs with the
/// same settings share one value.
pub(super) type Iam = Tokens<IamSettings>;

/// The tokens that outputs use. The next call of [`shared`] removes tokens that no output uses any
/// more. The list is global, because outputs are prepared one by one, and a reload prepares new
/// outputs while the old ones still run.
static IN_USE: Mutex<Vec<Weak<Iam>>> = Mutex::new(Vec::new());

/// Everything that a request for a token depends on. Outputs with equal settings share a token.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct IamSettings {
    pub credentials: Credentials,
    pub service: Service,
}

/// The credentials for tokens. The file is read again for each token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Credentials {
    /// The API key of a user or a service ID.
    ApiKey { file: PathBuf },
    /// A trusted profile, which trusts the service account of the pod.
    TrustedProfile {
        id: String,
        /// The file with the projected token of the service account, which the kubelet renews.
        token_file: PathBuf,
    },
}

impl Credentials {
    /// Reads the file. Returns the form that requests a token, and a hash of the file's secret. The
    /// error text names the file, and never contains its content. Blocks the thread.
    fn form(&self) -> Result<(String, u64), String> {
        let (Self::ApiKey { file } | Self::TrustedProfile { token_file: file, .. }) = self;
        let secret = token_in(file)?;
        let pairs = match self {
            Self::ApiKey { .. } => vec![
                ("grant_type", "urn:ibm:params:oauth:grant-type:apikey"),
                ("apikey", secret.as_str()),
            ],
            Self::TrustedProfile { id, .. } => vec![
                ("grant_type", "urn:ibm:params:oauth:grant-type:cr-token"),
                ("cr_token", secret.as_str()),
                ("profile_id", id.as_str()),
            ],
        };
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        Ok((form, rapidhash::v3::rapidhash_v3(secret.as_bytes())))
    }
}

/// The answer of IAM that has a token.
#[derive(Deserialize)]
struct Answer {
    access_token: String,
    /// The lifetime of the token in seconds.
    expires_in: u64,
}

/// Returns the tokens of the outputs with these settings, or new ones if there is no such output.
pub(crate) fn shared(settings: IamSettings) -> Arc<Iam> {
    let mut in_use = lock(&IN_USE);
    in_use.retain(|iam| iam.strong_count() > 0);
    let mut others = in_use.iter().filter_map(Weak::upgrade);
    if let Some(iam) = others.find(|iam| *iam.issuer() == settings) {
        return iam;
    }
    let iam = Arc::new(Tokens::new(settings));
    in_use.push(Arc::downgrade(&iam));
    iam
}

impl Issuer for IamSettings {
    type Token = HeaderValue;

    const NAME: &'static str = "IAM";

    fn service(&self) -> &Service {
        &self.service
    }

    fn question(&self) -> Result<(Question, u64), String> {
        let (form, hash) = self.credentials.form()?;
        Ok((Question { path: PATH, accept: "application/json", form }, hash))
    }

    fn refusal(&self) -> String {
        match &self.credentials {
            Credentials::ApiKey { file } => {
                format!("IAM does not accept the API key in {}", file.display())
            }
            Credentials::TrustedProfile { id, token_file } => {
                let file = token_file.display();
                format!("IAM does not accept the token in {file} for the trusted profile {id}")
            }
        }
    }

    fn token(&self, answer: &[u8]) -> Option<(HeaderValue, Duration)> {
        let Answer { access_token, expires_in } = serde_json::from_slice(answer).ok()?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {access_token}")).ok()?;
        authorization.set_sensitive(true);
        let is_usable = !access_token.is_empty() && expires_in > 0;
        is_usable.then_some((authorization, Duration::from_secs(expires_in)))
    }
}
