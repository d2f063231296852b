//! The credentials of a kubeconfig, for a server that is asked.

use super::kubeconfig::Kubeconfig;
use client::ask::Target;
use client::tls;
use config::ClientTls;

/// Makes a target from the server of a kubeconfig, with its credentials. The call blocks while it
/// reads the files that the kubeconfig names.
///
/// # Errors
///
/// A text that says what cannot be read or used.
pub fn server_of(kubeconfig: &Kubeconfig) -> Result<Target, String> {
    let server = Target::new(&kubeconfig.server);
    with_credentials(server.map_err(|wrong| format!("the server {wrong}"))?, kubeconfig)
}

/// Returns the target with the authorities and the credentials of a kubeconfig. A target without
/// TLS gets none. The call blocks while it reads the files that the kubeconfig names.
///
/// # Errors
///
/// A text that says what cannot be read or used.
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
