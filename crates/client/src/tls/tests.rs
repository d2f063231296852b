//! The messages about unusable certificate and key files: each names the file, the fault, and what
//! the operator can do. No message shows the name of an error type of rustls.

use super::*;

/// A certificate of X.509 version 1, as `openssl x509 -req` issues one without extensions.
const VERSION_1: &str = "-----BEGIN CERTIFICATE-----
MIIBFjCBvQIUCNKxTHukjM+VlFLMGGoijLsuzVEwCgYIKoZIzj0EAwIwDTELMAkG
A1UEAwwCdjEwIBcNMjYxMTIxMTAxNzMzWhgPMjEyNjEwMjgxMDE3MzNaMA0xCzAJ
BgNVBAMMAnYxMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaLrubalW/KPHsy10
ZA44PKhDyW/eR5/cwq3rPxSVkyhCMAvLCmWkrUwKkoe3rvslG0NyRt0SiKFFpQBX
5/bbZzAKBggqhkjOPQQDAgNIADBFAiB2yQkRYffzeUluHhR2LXCb6Rwaxllp+z98
qySObfmnCwIhAP32SJv4pu5hqIG0YL32ED3hESsvDBcH6NKthGHaGsTC
-----END CERTIFICATE-----
";

/// A PEM section whose contents are not a key: base64 of `no key`.
const NO_KEY: &str = "-----BEGIN PRIVATE KEY-----\nbm8ga2V5\n-----END PRIVATE KEY-----\n";

const NO_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nbm8ga2V5\n-----END CERTIFICATE-----\n";

/// An encrypted key. Its first line is enough, because nothing parses the contents.
const ENCRYPTED: &str =
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\nbm8ga2V5\n-----END ENCRYPTED PRIVATE KEY-----\n";

fn pair() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Returns the message of a listener with these files, after checking that `check` gives the same
/// one. `{dir}` in the result stands for the folder of the files.
fn message(certificate: &str, private_key: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let files = ["tls.crt", "tls.key"].map(|name| directory.path().join(name));
    for (file, content) in files.iter().zip([certificate, private_key]) {
        std::fs::write(file, content).unwrap();
    }
    let [certificate, private_key] = files;
    let listener = ListenerTls {
        certificate: certificate.clone(),
        private_key: private_key.clone(),
        client_ca: None,
        optional: false,
        min_version: TlsVersion::V1_2,
    };
    let of_listener = Server::read(&listener, None).map(drop).unwrap_err().to_string();
    let of_check =
        Chain::read(&certificate).and_then(|chain| chain.fits(&certificate, &private_key));
    assert_eq!(of_check.unwrap_err().to_string(), of_listener);
    of_listener.replace(directory.path().to_str().unwrap(), "{dir}")
}

#[test]
fn the_messages_about_certificates_and_keys_name_the_file_the_fault_and_the_way_out() {
    let (certificate, key) = pair();
    let (_, another_key) = pair();
    for (certificate, key, said) in [
        (
            VERSION_1,
            &*key,
            "{dir}/tls.crt can't be used: the certificate is not X.509 version 3: reissue it with \
             its names in a subjectAltName, which makes it version 3",
        ),
        (
            NO_CERTIFICATE,
            &key,
            "{dir}/tls.crt can't be used: a certificate in it is not valid X.509: reissue it",
        ),
        (
            &certificate,
            &another_key,
            "{dir}/tls.key is not the key for the certificate in {dir}/tls.crt",
        ),
        (
            &certificate,
            NO_KEY,
            "{dir}/tls.key holds a private key that can't be used: RSA of 2048 to 4096 bits, ECDSA \
             with P-256 or P-384, and Ed25519 can",
        ),
        (
            &certificate,
            ENCRYPTED,
            "{dir}/tls.key holds a private key that needs a passphrase: store it without one, as \
             `openssl pkey` writes it",
        ),
    ] {
        assert_eq!(message(certificate, key), said);
    }
}

#[test]
fn the_error_of_a_handshake_says_what_is_wrong_with_the_peers_certificate() {
    let name = Arc::new(io::Error::other("UnsupportedCertVersion"));
    let other = CertificateError::Other(OtherError(name));
    for (error, start, end) in [
        (
            rustls::Error::InvalidCertificate(other),
            "invalid peer certificate: the certificate is not X.509 version 3",
            "",
        ),
        (
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
            "invalid peer certificate: UnknownIssuer",
            "tls.ca",
        ),
    ] {
        let said =
            handshake_error(&io::Error::new(io::ErrorKind::InvalidData, error), Some("tls.ca"));
        assert!(said.starts_with(start) && said.contains(end), "{said}");
    }
    assert_eq!(handshake_error(&io::Error::other("reset"), None), "reset");
}

/// Runs with `cargo test --package client --features fips`, which needs CMake and Go.
#[cfg(feature = "fips")]
#[test]
fn with_the_feature_fips_listeners_and_outputs_use_nothing_else() {
    let (certificate, key) = pair();
    let directory = tempfile::tempdir().unwrap();
    let [certificate, private_key] =
        [("tls.crt", certificate), ("tls.key", key)].map(|(name, content)| {
            let file = directory.path().join(name);
            std::fs::write(&file, content).unwrap();
            file
        });
    let listener = ListenerTls {
        certificate,
        private_key,
        client_ca: None,
        optional: false,
        min_version: TlsVersion::V1_2,
    };
    assert!(Server::read(&listener, None).unwrap().settings().fips());
    let client = Client::of_contents(&ClientTls::default(), &[], Vec::new()).unwrap();
    assert!(client.settings().fips());
    let groups = provider().kx_groups.iter().map(|group| group.name()).collect::<Vec<_>>();
    assert_eq!(groups.first(), Some(&rustls::NamedGroup::X25519MLKEM768), "{groups:?}");
}
