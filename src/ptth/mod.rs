//! PTTH, HTTP backwards: what its two ends say to each other.
//!
//! A server behind a firewall (the far end) asks the relay for requests and posts its answers. Both are `MessagePack` as
//! `rmp-serde` wrote it when the published programs were made: a structure is an array, an enumeration's variant is a
//! map from its number to nil, and bytes are an array of integers. To the byte, because those programs are strict.

mod fields;
mod server;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fields::{BAD_FIELD, TOO_LARGE};
pub use fields::{BadField, Fields, MAX_FIELDS};
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
pub use server::{ServerName, Tripcode};
use std::fmt;

/// The first part of the paths that only far ends use.
pub const PREFIX: &str = "7ZSFUKGV";

/// The header field that holds a far end's key.
pub const KEY_FIELD: &str = "X-ApiKey";

/// The header field of an answer that holds its head ([`ResponseHead`]).
pub const HEAD_FIELD: &str = "X-PTTH-2LJYXWC4";

/// The header field of a request that names a method for which PTTH has no number: OPTIONS. It goes as a GET, which a far
/// end that does not know this field takes it for; both are safe (RFC 9110, 9.2.1).
pub const METHOD_FIELD: &str = "X-PTTH-Method";

/// What [`METHOD_FIELD`] says.
pub const OPTIONS: &str = "OPTIONS";

/// How many bytes a list of requests may have.
pub const MAX_LIST: usize = 8 << 20;

/// How many requests a list may have.
pub const MAX_REQUESTS: usize = 1000;

/// How many bytes a head may have, as `MessagePack`. Base64 makes a third more of it.
pub const MAX_HEAD: usize = 64 << 10;

/// Why something that was received is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// Larger than its limit.
    TooLarge,
    /// The head of an answer is not base64.
    NotBase64,
    /// Not the `MessagePack` that is expected.
    Malformed,
    /// A header field that cannot be passed on: its name is no token, or its value has a control character.
    BadField,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "It is larger than PTTH allows.",
            Self::NotBase64 => "X-PTTH-2LJYXWC4 is not base64.",
            Self::Malformed => "It is not MessagePack as PTTH has it.",
            Self::BadField => "A header field in it has a name or a value that HTTP does not allow.",
        })
    }
}

impl std::error::Error for WireError {}

/// The methods that have a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are HTTP's own names")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
}

impl Method {
    const ALL: [(Self, &str); 4] = [(Self::Get, "GET"), (Self::Head, "HEAD"), (Self::Post, "POST"), (Self::Put, "PUT")];

    /// The method of that name, in capitals; `None` where PTTH has no number for it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(method, _)| *method)
    }

    /// Its name, in capitals.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// The status of an answer: 200 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusCode(u16);

impl StatusCode {
    /// Those that have a number; the published programs know no others.
    const NUMBERED: [u16; 11] = [200, 204, 206, 304, 307, 400, 403, 404, 405, 416, 500];

    /// `None` for what cannot be a final status (RFC 9110, 15).
    #[must_use]
    pub fn new(code: u16) -> Option<Self> {
        (200..600).contains(&code).then_some(Self(code))
    }

    /// The three digits.
    #[must_use]
    pub fn code(self) -> u16 {
        self.0
    }
}

/// The head of a request to a server.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RequestHead {
    /// What to do.
    pub method: Method,
    /// Path and query, as the server sees them: beginning with `/`.
    pub uri: String,
    /// The header fields.
    pub fields: Fields,
}

/// A request that waits for its server.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Waiting {
    /// What the answer is posted to.
    pub id: String,
    /// The request itself. It has no body.
    pub head: RequestHead,
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResponseHead {
    /// How it went.
    pub status: StatusCode,
    /// The header fields.
    pub fields: Fields,
}

impl RequestHead {
    /// Its method's name, in capitals: the number's, or what [`METHOD_FIELD`] says.
    #[must_use]
    pub fn method_name(&self) -> &'static str {
        match self.fields.get(&METHOD_FIELD.to_ascii_lowercase()) {
            Some(OPTIONS) if self.method == Method::Get => OPTIONS,
            _ => self.method.name(),
        }
    }
}

impl Waiting {
    /// As it is in a list.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

/// The body of `http_listen`.
#[must_use]
pub fn encode_list(requests: &[Waiting]) -> Vec<u8> {
    join_list(&requests.iter().map(Waiting::encode).collect::<Vec<_>>())
}

/// The same, of [encoded](Waiting::encode) requests.
///
/// # Panics
/// When there are more than 65,535.
#[must_use]
pub fn join_list(requests: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(requests.len()).expect("there are far fewer");
    let mut list = match count {
        // An array says its length in its first byte, or in the two after it.
        0..16 => vec![0x90 | count.to_be_bytes()[1]],
        _ => [&[0xdc], &count.to_be_bytes()[..]].concat(),
    };
    list.extend(requests.concat());
    list
}

/// Reads the body of `http_listen`. One request in it that cannot be taken does not concern the others.
///
/// # Errors
/// What it is not.
pub fn decode_list(bytes: &[u8]) -> Result<Vec<Result<Waiting, WireError>>, WireError> {
    let (count, mut rest) = match bytes {
        _ if bytes.len() > MAX_LIST => return Err(WireError::TooLarge),
        // As `join_list` writes it, or longer than it need be.
        [count @ 0x90..=0x9f, rest @ ..] => (usize::from(count & 0x0f), rest),
        [0xdc, high, low, rest @ ..] | [0xdd, 0, 0, high, low, rest @ ..] => {
            (usize::from(u16::from_be_bytes([*high, *low])), rest)
        }
        _ => return Err(WireError::Malformed),
    };
    if count > MAX_REQUESTS {
        return Err(WireError::TooLarge);
    }
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        // Where it ends is known of any MessagePack.
        let (_, behind) = decode_first::<IgnoredAny>(rest)?;
        list.push(decode(&rest[..rest.len() - behind.len()], MAX_LIST));
        rest = behind;
    }
    if rest.is_empty() { Ok(list) } else { Err(WireError::Malformed) }
}

impl ResponseHead {
    /// The value of [`HEAD_FIELD`].
    #[must_use]
    pub fn encode(&self) -> String {
        STANDARD.encode(encode(self))
    }

    /// Reads the value of [`HEAD_FIELD`].
    ///
    /// # Errors
    /// What it is not. [`WireError::BadField`] is a well-formed head that no client can be given.
    pub fn decode(value: &str) -> Result<Self, WireError> {
        if value.len() > MAX_HEAD.div_ceil(3) * 4 {
            return Err(WireError::TooLarge);
        }
        decode(&STANDARD.decode(value).map_err(|_| WireError::NotBase64)?, MAX_HEAD)
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(value).expect("memory takes everything, and every length is known")
}

fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, WireError> {
    if bytes.len() > limit {
        return Err(WireError::TooLarge);
    }
    let (value, rest) = decode_first(bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(WireError::Malformed) }
}

/// The first value, and what follows it.
fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    let mut rest = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    // Far more than the five levels there are.
    reader.set_max_depth(16);
    let value = T::deserialize(&mut reader).map_err(|error| match error {
        rmp_serde::decode::Error::Syntax(said) if said == TOO_LARGE => WireError::TooLarge,
        rmp_serde::decode::Error::Syntax(said) if said == BAD_FIELD => WireError::BadField,
        _ => WireError::Malformed,
    })?;
    Ok((value, rest))
}

/// Writes the variant of that number.
fn serialize_variant<S: Serializer>(serializer: S, number: usize) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(&number, &())?;
    map.end()
}

/// Reads the number of a variant out of its map.
fn variant_in<'de, A: MapAccess<'de>>(mut map: A) -> Result<usize, A::Error> {
    let (number, ()) = map.next_entry()?.ok_or_else(|| de::Error::custom("no variant"))?;
    if map.next_key::<usize>()?.is_some() {
        return Err(de::Error::custom("two variants"));
    }
    Ok(number)
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_variant(serializer, *self as usize)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Method;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a method")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Method, A::Error> {
                let number = variant_in(map)?;
                Method::ALL.get(number).map(|(method, _)| *method).ok_or_else(|| de::Error::custom("unknown method"))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl Serialize for StatusCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match Self::NUMBERED.iter().position(|code| *code == self.0) {
            Some(number) => serialize_variant(serializer, number),
            None => serializer.serialize_u16(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for StatusCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = StatusCode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StatusCode, A::Error> {
                let number = variant_in(map)?;
                StatusCode::NUMBERED
                    .get(number)
                    .map(|code| StatusCode(*code))
                    .ok_or_else(|| de::Error::custom("unknown status"))
            }

            fn visit_u64<E: de::Error>(self, code: u64) -> Result<StatusCode, E> {
                u16::try_from(code).ok().and_then(StatusCode::new).ok_or_else(|| E::custom("not a status"))
            }

            fn visit_i64<E: de::Error>(self, code: i64) -> Result<StatusCode, E> {
                u16::try_from(code).ok().and_then(StatusCode::new).ok_or_else(|| E::custom("not a status"))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the published relay sent it.
    const LISTENED: &str = "9192ba30314d37593132573151594d58334b4e4643454142315653314e938100c0a72f66696c65732f84\
        a4686f73749e3132372e302e302e313a34303030aa757365722d6167656e749b6375726c2f372e38382e31b0736f6d65636c69656e746865\
        616465729568656c6c6fa6616363657074932a2f2a";

    /// As the published server sent it.
    const ANSWERED: &str = "koEAwIKsY29udGVudC10eXBl3AAYdGV4dC9odG1sOyBjaGFyc2V0PVVURi04rmNvbnRlbnQtbGVuZ3RokTI=";

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in pairs {
            fields.add(name, value.as_bytes()).unwrap();
        }
        fields
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        crate::hex::decode(std::str::from_utf8(&digits).unwrap()).unwrap()
    }

    fn response(status: u16, fields: Fields) -> ResponseHead {
        ResponseHead { status: StatusCode::new(status).unwrap(), fields }
    }

    #[test]
    fn a_list_of_requests_is_what_the_published_relay_sends() {
        let request = Waiting {
            id: "01M7Y12W1QYMX3KNFCEAB1VS1N".into(),
            head: RequestHead {
                method: Method::Get,
                uri: "/files/".into(),
                fields: fields(&[
                    ("Host", "127.0.0.1:4000"),
                    ("User-Agent", "curl/7.88.1"),
                    ("SomeClientHeader", "hello"),
                    ("Accept", "*/*"),
                ]),
            },
        };
        assert_eq!(encode_list(std::slice::from_ref(&request)), bytes(LISTENED));
        assert_eq!(decode_list(&bytes(LISTENED)).unwrap(), [Ok(request)]);
        assert_eq!(encode_list(&[]), [0x90]);
    }

    #[test]
    fn the_head_of_an_answer_is_what_the_published_server_sends() {
        let head = response(200, fields(&[("content-type", "text/html; charset=UTF-8"), ("content-length", "2")]));
        assert_eq!(head.encode(), ANSWERED);
        assert_eq!(ResponseHead::decode(ANSWERED).unwrap(), head);
    }

    #[test]
    fn the_eleven_statuses_have_their_numbers_and_others_are_integers() {
        for (number, code) in (0..).zip(StatusCode::NUMBERED) {
            let packed = [&[0x92, 0x81, number, 0xc0, 0x80][..]].concat();
            assert_eq!(response(code, Fields::default()).encode(), STANDARD.encode(packed));
            // Somebody else's plain integer.
            let [high, low] = code.to_be_bytes();
            let plain = STANDARD.encode([0x92, 0xcd, high, low, 0x80]);
            assert_eq!(ResponseHead::decode(&plain).unwrap().status.code(), code);
        }
        assert_eq!(response(502, Fields::default()).encode(), STANDARD.encode([0x92, 0xcd, 0x01, 0xf6, 0x80]));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let decode = |bytes: &[u8]| ResponseHead::decode(&STANDARD.encode(bytes)).unwrap_err();
        for malformed in [
            &b""[..],
            &[0x92],
            &[0x92, 0x81, 11, 0xc0, 0x80],                    // no such status
            &[0x92, 0x82, 0, 0xc0, 1, 0xc0, 0x80],            // two of them
            &[0x92, 0x80, 0x80],                              // none
            &[0x92, 0xcd, 0, 199, 0x80],                      // not a final one
            &[0x92, 0xcd, 2, 88, 0x80],                       // 600
            &[0x92, 0xff, 0x80],                              // -1
            &[0x92, 0x81, 0, 0xc0, 0x80, 0],                  // something after it
            &[0x92, 0x81, 0, 0xc0, 0xdf, 255, 255, 255, 255], // four thousand million fields
            &[0x92, 0x81, 0, 0xc0, 0x81, 0xdb, 255, 255, 255, 255],
        ] {
            assert_eq!(decode(malformed), WireError::Malformed, "{malformed:x?}");
        }
        for (name, value) in [("", b'x'), ("a b", b'x'), ("a:", b'x'), ("a", b'\n'), ("a", b'\r'), ("a", 0), ("a", 127)]
        {
            let head = [
                &[0x92, 0x81, 0, 0xc0, 0x81, 0xa0 + u8::try_from(name.len()).unwrap()],
                name.as_bytes(),
                &[0x91, value],
            ]
            .concat();
            assert_eq!(decode(&head), WireError::BadField, "{name:?}: {value}");
        }
        let mut many = vec![0x92, 0x81, 0, 0xc0, 0xde, 1, 0];
        (0..256).for_each(|_| many.extend([0xa1, b'a', 0x90]));
        assert_eq!(decode(&many), WireError::TooLarge);
        assert_eq!(decode(&vec![0; MAX_HEAD + 1]), WireError::TooLarge);
        assert_eq!(ResponseHead::decode("%"), Err(WireError::NotBase64));
        let long = [&[0xdc, 0x27, 0x10][..], &[0x92, 0xa0, 0x93, 0x81, 0, 0xc0, 0xa0, 0x80].repeat(10_000)].concat();
        assert_eq!(decode_list(&long), Err(WireError::TooLarge));
    }

    #[test]
    fn a_request_that_cannot_be_taken_does_not_take_the_others_with_it() {
        let good = |uri: &str| Waiting {
            id: "i".into(),
            head: RequestHead { method: Method::Get, uri: uri.into(), fields: Fields::default() },
        };
        let mut many = good("/many");
        (0..=MAX_FIELDS).for_each(|number| many.head.fields.add(&format!("a{number}"), b"").unwrap());
        let list = [
            good("/1").encode(),
            vec![0x92, 0xa1, b'i', 0x93, 0x81, 9, 0xc0, 0xa1, b'/', 0x80], // a method that nobody knows
            vec![0x92, 0xa1, b'i', 0x93, 0x81, 0, 0xc0, 0xa1, b'/', 0x81, 0xa1, b'a', 0x91, b'\n'],
            many.encode(),
            vec![0xa2, 0xff, 0xff],       // a text, and no UTF-8 either
            vec![0xc7, 0x01, 0x05, 0x00], // what MessagePack leaves to others
            good("/2").encode(),
        ];
        let malformed = || Err(WireError::Malformed);
        let read = [
            Ok(good("/1")),
            malformed(),
            Err(WireError::BadField),
            Err(WireError::TooLarge),
            malformed(),
            malformed(),
            Ok(good("/2")),
        ];
        assert_eq!(decode_list(&join_list(&list)).unwrap(), read);
        // Nobody knows where such a one ends.
        for one in [&[0xc1][..], &[0x91; 40], &[0xdd, 255, 255, 255, 255], &[0x92, 0xa9, b'i']] {
            let list = join_list(&[good("/1").encode(), one.to_vec()]);
            assert_eq!(decode_list(&list), Err(WireError::Malformed), "{one:x?}");
        }
    }

    #[test]
    fn fields_of_one_name_are_a_list_but_cookies_stay_apart() {
        let head = response(200, fields(&[("A", "1"), ("Set-Cookie", "x"), ("a", "2"), ("set-cookie", "y")]));
        let read = ResponseHead::decode(&head.encode()).unwrap();
        let read: Vec<_> = read.fields.iter().collect();
        assert_eq!(read, [("a", &b"1, 2"[..]), ("set-cookie", b"x"), ("set-cookie", b"y")]);
    }

    fn any_fields() -> impl Strategy<Value = Fields> {
        proptest::collection::vec(("[a-z-]{1,9}", "[ -~\u{80}-\u{ff}]{0,40}"), 0..9).prop_map(|pairs| {
            let mut fields = Fields::default();
            for (name, value) in &pairs {
                fields.add(name, value.as_bytes()).unwrap();
            }
            fields
        })
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read(
            requests in proptest::collection::vec(("[!-~]{0,40}", 0..4_usize, "/[!-~]{0,40}", any_fields()), 0..20),
            status in 200..600_u16,
            fields in any_fields(),
        ) {
            let waiting = |(id, method, uri, fields)| {
                let (method, _): (Method, _) = Method::ALL[method];
                Waiting { id, head: RequestHead { method, uri, fields } }
            };
            let requests: Vec<_> = requests.into_iter().map(waiting).collect();
            let read = decode_list(&encode_list(&requests)).unwrap().into_iter().collect::<Result<Vec<_>, _>>();
            prop_assert_eq!(read.unwrap(), requests);
            let head = response(status, fields);
            prop_assert_eq!(ResponseHead::decode(&head.encode()).unwrap(), head);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_list(&bytes);
            let _ = ResponseHead::decode(&STANDARD.encode(&bytes));
            let _ = ResponseHead::decode(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_damaged_message_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>(), end in any::<prop::sample::Index>()) {
            let mut list = bytes(LISTENED);
            let at = at.index(list.len());
            list[at] = byte;
            let _ = decode_list(&list);
            list.truncate(end.index(list.len()));
            let _ = decode_list(&list);
        }
    }
}
