//! A server with the credentials of a kubeconfig.

use super::kubeconfig::Kubeconfig;
use client::ask::Target;
use client::tls;
use config::ClientTls;

/// Makes a target from the server of a kubeconfig and its credentials. Blocks while it reads the
/// files of the kubeconfig.
///
/// # Errors
///
/// A file or setting can't be read or used. The text is the reason.
pub fn server_of(kubeconfig: &Kubeconfig) -> Result<Target, String> {
    let server = Target::new(&kubeconfig.server);
    with_credentials(server.map_err(|wrong| format!("the server {wrong}"))?, kubeconfig)
}

/// Adds the kubeconfig's CAs and credentials to an https target; an http target is returned
/// unchanged. Blocks while it reads the files of the kubeconfig.
///
/// # Errors
///
/// A file or setting can't be read or used. The text is the reason.
pub fn with_credentials(target: Target, kubeconfig: &Kubeconfig) -> Result<Target, String> {
    if !target.is_https() {
        return Ok(target);
    }
    let mut contents = Vec::new();
    let mut names = ClientTls { insecure_skip_verify: kubeconfig.insecure, ..ClientTls::default() };
    if let Some(ca) = &kubeconfig.ca {
        contents.push(ca.read()?);
        names.ca = Some(ca.name("certificate-authority"));
    }
    if let Some((certificate, key)) = &kubeconfig.identity {
        contents.extend([certificate.read()?, key.read()?]);
        names.identity = Some((certificate.name("client-certificate"), key.name("client-key")));
    }
    let client = tls::Client::of_contents(&names, &[b"http/1.1"], contents);
    let client = client.map_err(|error| error.to_string())?;
    let token = kubeconfig.token.as_ref().map(|token| token.read()).transpose()?;
    let names = kubeconfig.server_name.iter().cloned().collect();
    target.with_credentials(client, names, token.as_deref())
}
