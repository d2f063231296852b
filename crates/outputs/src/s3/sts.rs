//! Temporary keys from the AWS Security Token Service, which issues keys for the token of the pod's
//! service account. Source: AWS STS API Reference, `AssumeRoleWithWebIdentity`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::HeaderValue;
use url::form_urlencoded;

use super::signature::SigningKey;
use crate::http::api::token_in;
use crate::http::service::{Question, Service};
use crate::tokens::Issuer;
use audit::time::nanos;

const VERSION: &str = "2011-06-15";

/// The role that the relay assumes, and the proof that it may.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Role {
    /// The name of the role: `arn:aws:iam::ACCOUNT:role/NAME`.
    pub(super) arn: String,
    /// The name of the relay in the log of AWS.
    pub(super) session: String,
    /// The file with the token of the service account, which the kubelet renews.
    pub(super) token_file: PathBuf,
    pub(super) url: String,
}

impl Role {
    /// Returns the role from the environment variables of AWS's own programs, if there is one.
    pub(super) fn of(env: &dyn Fn(&str) -> Option<String>, region: &str) -> Option<Self> {
        let value = |name: &str| env(name).filter(|value| !value.is_empty());
        let session = value("AWS_ROLE_SESSION_NAME");
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let url = value("AWS_ENDPOINT_URL_STS");
        Some(Self {
            arn: value("AWS_ROLE_ARN")?,
            session: session.unwrap_or_else(|| "kube-audit-forwarder".to_owned()),
            token_file: value("AWS_WEB_IDENTITY_TOKEN_FILE")?.into(),
            url: url.unwrap_or_else(|| format!("https://sts.{region}.{domain}")),
        })
    }
}

pub(super) struct Sts {
    pub(super) role: Role,
    pub(super) service: Service,
}

impl Issuer for Sts {
    type Token = Arc<SigningKey>;

    const NAME: &'static str = "STS";

    fn service(&self) -> &Service {
        &self.service
    }

    fn question(&self) -> Result<(Question, u64), String> {
        let Role { arn, session, token_file, .. } = &self.role;
        let secret = token_in(token_file)?;
        let pairs = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", VERSION),
            ("RoleArn", arn.as_str()),
            ("RoleSessionName", session.as_str()),
            ("WebIdentityToken", secret.as_str()),
        ];
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        let question = Question { path: "/", accept: "text/xml", form };
        Ok((question, rapidhash::v3::rapidhash_v3(secret.as_bytes())))
    }

    fn refusal(&self) -> String {
        let Role { arn, token_file, .. } = &self.role;
        format!("STS does not accept the token in {} for the role {arn}", token_file.display())
    }

    fn token(&self, answer: &[u8]) -> Option<(Arc<SigningKey>, Duration)> {
        keys(answer)
    }
}

/// Returns the keys in an answer, and their lifetime. `None` if the answer has no valid keys.
fn keys(answer: &[u8]) -> Option<(Arc<SigningKey>, Duration)> {
    let text = std::str::from_utf8(answer).ok()?;
    let (_, credentials) = text.split_once("<Credentials>")?;
    let value = |name: &str| {
        let (_, rest) = credentials.split_once(&format!("<{name}>"))?;
        let (value, _) = rest.split_once(&format!("</{name}>"))?;
        // The values have none of the characters that XML escapes.
        let is_plain = !value.is_empty() && !value.contains(['<', '&']);
        let is_header = HeaderValue::from_str(value).is_ok();
        (is_plain && is_header).then(|| value.to_owned())
    };
    let expires = Duration::from_nanos(nanos(value("Expiration")?.as_bytes())?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let life = expires.checked_sub(now).filter(|life| !life.is_zero())?;
    let keys = SigningKey {
        id: value("AccessKeyId")?,
        secret: value("SecretAccessKey")?,
        session: Some(value("SessionToken")?),
    };
    Some((Arc::new(keys), life))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_page_has_no_keys() {
        let answer = "<Credentials><SessionToken>a</SessionToken><SecretAccessKey>b\
                      </SecretAccessKey><Expiration>2200-01-01T00:00:00Z</Expiration>\
                      <AccessKeyId>c</AccessKeyId></Credentials>";
        assert!(keys(answer.as_bytes()).is_some());
        for page in ["", "<html><body>sign in</body></html>", "<Credentials>", "{}"] {
            assert!(keys(page.as_bytes()).is_none(), "{page}");
        }
        let escaped = answer.replace(">b<", "><b></b><");
        assert!(keys(escaped.as_bytes()).is_none());
    }
}
