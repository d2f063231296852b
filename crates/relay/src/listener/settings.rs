//! The settings of one listener, with the files that they name.

use std::sync::Arc;

use super::token::Token;
use client::tls::Server;

/// The settings of one listener, from the config and from the files that the config names. A reload
/// replaces all of them together.
pub struct Settings {
    pub(super) path_prefix: String,
    pub(super) token: Option<Token>,
    pub(super) tls: Option<Arc<Server>>,
}

impl Settings {
    /// Reads the files that the config of a listener names. If neither the certificate files nor
    /// the TLS config have changed since `current` was read, keeps the TLS settings of `current`;
    /// clients can then resume their sessions. Returns `None` if the certificate, its key or the
    /// `client_ca` does not exist yet and the config has `tls.optional`. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// A text that names the file and its fault.
    pub fn read(config: &config::Listener, current: Option<&Self>) -> Result<Option<Self>, String> {
        let token = config.bearer_token_file.as_deref().map(Token::read).transpose()?;
        let tls = match &config.tls {
            None => None,
            Some(tls) => match Server::read(tls, current.and_then(|it| it.tls.as_ref())) {
                Ok(server) => Some(server),
                Err(error) if tls.optional && error.is_missing() => return Ok(None),
                Err(error) => return Err(error.to_string()),
            },
        };
        Ok(Some(Self { path_prefix: config.path_prefix.clone(), token, tls }))
    }

    /// Returns `true` if connections that were made under the settings `others` may stay open under
    /// `self`: both use TLS with the same `client_ca`, or neither uses TLS. Otherwise clients must
    /// connect again, because a client's certificate is checked only in the TLS handshake.
    pub fn is_compatible(&self, others: &Self) -> bool {
        fn asked(settings: &Settings) -> Option<Option<&[u8]>> {
            settings.tls.as_ref().map(|tls| tls.client_ca())
        }
        asked(self) == asked(others)
    }
}
