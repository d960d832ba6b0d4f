//! Who is speaking: JSON Web Tokens (RFC 7519) in compact form (RFC 7515), signed with HS256 and nothing else.
//!
//! The published client reads `clientId` out of a response token, so a token must be a JWT; the payloads are the
//! reference server's.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use serde_json::Number;
use sha2::Sha256;
use std::fmt;

/// No token of ours comes near this many bytes; a longer one is not worth a signature check.
const LONGEST: usize = 4096;

/// `{"alg":"HS256","typ":"JWT"}`, as every token that is signed here begins.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

/// An id that its owner, or an application, may choose: any text without control characters, of so many bytes at most.
macro_rules! id {
    ($(#[$about:meta])* $name:ident, $longest:literal) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(String);

        impl $name {
            /// The longest one in bytes.
            pub const LONGEST: usize = $longest;

            /// `None` where the text cannot be one.
            #[must_use]
            pub fn new(text: &str) -> Option<Self> {
                is_id(text, Self::LONGEST).then(|| Self(text.to_owned()))
            }

            /// The id as it stands in JSON.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

id! {
    /// The name of a host: what clients are told to join. Any text without control characters, 1 to 256 bytes.
    HostId, 256
}

id! {
    /// The name of a client: a UUID v4 where the relay chose it. Any text without control characters, 1 to 80 bytes: so a
    /// line of the table of members has room for it, each byte of which JSON may escape.
    ClientId, 80
}

fn is_id(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// What a token says. `registration` names the one `action=host` it belongs to; a token that an application minted
/// itself has none, and needs none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// May listen as the host, and broadcast to its clients.
    Host {
        /// The host it is for.
        host_id: HostId,
        /// The registration it was given out with.
        registration: Option<String>,
    },
    /// May listen as one client, and send to its host.
    Client {
        /// The client's host.
        host_id: HostId,
        /// The client it is for.
        client_id: ClientId,
        /// The registration of its host when it joined.
        registration: Option<String>,
    },
    /// May send to one client.
    Response {
        /// The client's host.
        host_id: HostId,
        /// The client it reaches.
        client_id: ClientId,
    },
}

impl Token {
    /// The host it is for, or whose client it is for.
    #[must_use]
    pub fn host_id(&self) -> &HostId {
        let (Self::Host { host_id, .. } | Self::Client { host_id, .. } | Self::Response { host_id, .. }) = self;
        host_id
    }
}

/// Why a token is refused. All of them are a 401; the sentence is for the developer who holds the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// Not three base64url parts with JSON in the first two.
    Malformed,
    /// `alg` is not HS256, or the header asks for something that is not understood (`crit`).
    Algorithm,
    /// The signature is not ours.
    Signature,
    /// Signed by the right secret, but it says nothing that a relay knows.
    Payload,
    /// `exp` is over, or `nbf` has not come.
    Time,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "The token is not a JSON Web Token: use a token exactly as the relay gave it out.",
            Self::Algorithm => "The token is not signed with HS256: sign it with HS256.",
            Self::Signature => {
                "The token's signature does not match: get a new token from this relay, or sign with its JWT_SECRET."
            }
            Self::Payload => {
                "The token's payload is not one of hostToken, clientToken, responseToken with a hostId (and clientId)."
            }
            Self::Time => "The token is not valid now: its exp is over or its nbf has not come; get a new one.",
        })
    }
}

impl std::error::Error for TokenError {}

#[derive(Deserialize)]
struct Header {
    alg: String,
    crit: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    r#type: Type,
    host_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registration: Option<String>,
    /// Seconds since 1970; JWT allows fractions (RFC 7519, 2: `NumericDate`).
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<Number>,
}

#[derive(Serialize, Deserialize)]
enum Type {
    #[serde(rename = "hostToken")]
    Host,
    #[serde(rename = "clientToken")]
    Client,
    #[serde(rename = "responseToken")]
    Response,
}

/// What tokens are signed and checked with.
pub struct Key(Hmac<Sha256>);

impl Key {
    /// A key made of the shared secret. HMAC takes a secret of any length.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes a key of any length"))
    }

    /// Signs `token`, issued at `now` (seconds since 1970).
    ///
    /// # Panics
    /// Never: every token can be written as JSON.
    #[must_use]
    pub fn sign(&self, token: &Token, now: u64) -> String {
        let (kind, host_id, client_id, registration) = match token {
            Token::Host { host_id, registration } => (Type::Host, host_id, None, registration.clone()),
            Token::Client { host_id, client_id, registration } => {
                (Type::Client, host_id, Some(client_id), registration.clone())
            }
            Token::Response { host_id, client_id } => (Type::Response, host_id, Some(client_id), None),
        };
        let payload = Payload {
            r#type: kind,
            host_id: host_id.0.clone(),
            client_id: client_id.map(|id| id.0.clone()),
            registration,
            iat: Some(now.into()),
            exp: None,
            nbf: None,
        };
        let payload = serde_json::to_vec(&payload).expect("a payload is plain JSON");
        let mut jwt = format!("{HEADER}.{}", BASE64URL.encode(payload));
        let signature = self.0.clone().chain_update(&jwt).finalize().into_bytes();
        jwt.push('.');
        BASE64URL.encode_string(signature, &mut jwt);
        jwt
    }

    /// Reads a token that this key has signed. The signature is compared in constant time.
    ///
    /// # Errors
    /// Why it is refused, see [`TokenError`].
    pub fn verify(&self, jwt: &str, now: u64) -> Result<Token, TokenError> {
        if jwt.len() > LONGEST {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = jwt.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        if header != HEADER {
            let header: Header = decode(header)?;
            if header.alg != "HS256" || header.crit.is_some() {
                return Err(TokenError::Algorithm);
            }
        }
        let signature = BASE64URL.decode(signature).map_err(|_| TokenError::Malformed)?;
        self.0.clone().chain_update(signed).verify_slice(&signature).map_err(|_| TokenError::Signature)?;

        let payload: Payload = decode(payload).map_err(|_| TokenError::Payload)?;
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are exact in 53 bits")]
        let now = now as f64;
        let seconds = |date: &Option<Number>| date.as_ref().and_then(Number::as_f64);
        if seconds(&payload.exp).is_some_and(|exp| now >= exp) || seconds(&payload.nbf).is_some_and(|nbf| now < nbf) {
            return Err(TokenError::Time);
        }
        let host_id = HostId::new(&payload.host_id).ok_or(TokenError::Payload)?;
        let client_id = payload.client_id.as_deref().and_then(ClientId::new).ok_or(TokenError::Payload);
        let registration = payload.registration;
        Ok(match payload.r#type {
            Type::Host => Token::Host { host_id, registration },
            Type::Client => Token::Client { host_id, client_id: client_id?, registration },
            Type::Response => Token::Response { host_id, client_id: client_id? },
        })
    }
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, TokenError> {
    let json = BASE64URL.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(registration: Option<&str>) -> Token {
        Token::Host { host_id: HostId::new("123456").unwrap(), registration: registration.map(str::to_owned) }
    }

    /// A token signed as an application would, with whatever header and payload it likes.
    fn mint(key: &Key, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(payload));
        let signature = key.0.clone().chain_update(&signed).finalize().into_bytes();
        format!("{signed}.{}", BASE64URL.encode(signature))
    }

    #[test]
    fn the_constant_header_is_what_it_says() {
        assert_eq!(BASE64URL.decode(HEADER).unwrap(), br#"{"alg":"HS256","typ":"JWT"}"#);
    }

    #[test]
    fn the_example_of_jwt_io_verifies() {
        // Known answer: HS256 with "your-256-bit-secret" over a payload that is not a relay's.
        let jwt = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";
        assert_eq!(Key::new(b"your-256-bit-secret").verify(jwt, 0), Err(TokenError::Payload));
        assert_eq!(Key::new(b"another secret").verify(jwt, 0), Err(TokenError::Signature));
    }

    #[test]
    fn only_hs256_is_accepted() {
        let key = Key::new(b"secret");
        let payload = r#"{"type":"hostToken","hostId":"1"}"#;
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"hs256"}"#,
            r#"{"alg":"HS384"}"#,
            r#"{"alg":"RS256"}"#,
            r#"{"alg":"HS256","crit":["b64"]}"#,
        ] {
            assert_eq!(key.verify(&mint(&key, header, payload), 0), Err(TokenError::Algorithm), "{header}");
        }
        assert!(key.verify(&mint(&key, r#"{"typ":"JWT","alg":"HS256"}"#, payload), 0).is_ok());
        let unsigned = format!("{}.{}.", BASE64URL.encode(r#"{"alg":"none"}"#), BASE64URL.encode(payload));
        assert_eq!(key.verify(&unsigned, 0), Err(TokenError::Algorithm));
    }

    #[test]
    fn times_are_honoured() {
        let key = Key::new(b"secret");
        let header = r#"{"alg":"HS256"}"#;
        let jwt = mint(&key, header, r#"{"type":"hostToken","hostId":"1","nbf":10,"exp":20.5}"#);
        assert_eq!(key.verify(&jwt, 9), Err(TokenError::Time));
        assert!(key.verify(&jwt, 10).is_ok());
        assert!(key.verify(&jwt, 20).is_ok());
        assert_eq!(key.verify(&jwt, 21), Err(TokenError::Time));
    }

    #[test]
    fn a_client_token_without_a_client_is_refused() {
        let key = Key::new(b"secret");
        let jwt = mint(&key, r#"{"alg":"HS256"}"#, r#"{"type":"clientToken","hostId":"1"}"#);
        assert_eq!(key.verify(&jwt, 0), Err(TokenError::Payload));
    }

    proptest! {
        #[test]
        fn what_is_signed_verifies(host_id in "\\PC{1,60}", client_id in "\\PC{1,20}", registration in proptest::option::of("[0-9a-f]{16}")) {
            let key = Key::new(b"secret");
            let (host_id, client_id) = (HostId::new(&host_id).unwrap(), ClientId::new(&client_id).unwrap());
            for token in [
                Token::Host { host_id: host_id.clone(), registration: registration.clone() },
                Token::Client { host_id: host_id.clone(), client_id: client_id.clone(), registration: registration.clone() },
                Token::Response { host_id: host_id.clone(), client_id: client_id.clone() },
            ] {
                prop_assert_eq!(key.verify(&key.sign(&token, 1), 2), Ok(token));
            }
        }

        #[test]
        fn any_text_is_refused_without_a_crash(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let key = Key::new(b"secret");
            prop_assert!(key.verify(&text, 0).is_err());
            let encoded = BASE64URL.encode(&bytes);
            let dotted = format!("{HEADER}.{encoded}.{encoded}");
            prop_assert!(key.verify(&dotted, 0).is_err());
        }

        #[test]
        fn a_changed_token_is_refused(position in 0usize..200, change in 1u8..64) {
            let key = Key::new(b"secret");
            let jwt = key.sign(&host(Some("0123456789abcdef")), 1);
            let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let mut bytes = jwt.clone().into_bytes();
            let position = position % bytes.len();
            if let Some(index) = alphabet.iter().position(|byte| *byte == bytes[position]) {
                bytes[position] = alphabet[(index + usize::from(change)) % 64];
                prop_assert!(key.verify(std::str::from_utf8(&bytes).unwrap(), 2).is_err());
            }
        }
    }
}
