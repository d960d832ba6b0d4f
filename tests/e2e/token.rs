//! Tokens as an application mints them that shares the secret with the relay, and as an attacker forges them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

/// The payload of a token, unverified: all that a client ever looks at.
#[track_caller]
pub fn payload(token: &str) -> Value {
    part(token, 1)
}

#[track_caller]
pub fn header(token: &str) -> Value {
    part(token, 0)
}

#[track_caller]
fn part(token: &str, number: usize) -> Value {
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "{token:?} is not a JWT");
    let bytes = URL_SAFE_NO_PAD.decode(parts[number]).unwrap_or_else(|error| panic!("{token:?}: {error}"));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{token:?}: {error}"))
}

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Header, payload and an HMAC-SHA256 over both, whatever the header claims.
pub fn signed(header: &Value, payload: &Value, secret: &str) -> String {
    let text = format!("{}.{}", base64url(header.to_string()), base64url(payload.to_string()));
    let signature = signature(&text, secret);
    format!("{text}.{signature}")
}

pub fn signature(text: &str, secret: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length");
    mac.update(text.as_bytes());
    base64url(mac.finalize().into_bytes())
}

pub fn hs256() -> Value {
    json!({"alg": "HS256", "typ": "JWT"})
}

pub fn minted_host(host_id: &str, secret: &str) -> String {
    signed(&hs256(), &json!({"type": "hostToken", "hostId": host_id}), secret)
}

pub fn minted_client(host_id: &str, client_id: &str, secret: &str) -> String {
    signed(&hs256(), &json!({"type": "clientToken", "hostId": host_id, "clientId": client_id}), secret)
}

pub fn minted_response(host_id: &str, client_id: &str, secret: &str) -> String {
    signed(&hs256(), &json!({"type": "responseToken", "hostId": host_id, "clientId": client_id}), secret)
}
