//! AWS-LC is compiled for each architecture, on some of them without its assembler. Its own tests
//! compare SHA-256, HMAC, AES-GCM, ECDSA and ECDH with P-256, Ed25519, ML-KEM and others with known
//! answers. Only its FIPS module runs them at the start.
#![allow(unsafe_code, reason = "aws-lc-rs has no safe function for it")]

#[test]
fn aws_lc_gives_the_known_answers_on_this_architecture() {
    // SAFETY: the function takes nothing, and its result is a number.
    assert_eq!(unsafe { aws_lc_sys::BORINGSSL_self_test() }, 1);
}
