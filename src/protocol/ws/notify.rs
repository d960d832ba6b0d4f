//! Messages of an application to a channel: by POST, and by the command line.

use crate::config::Settings;
use crate::gateway::{Reply, Request, Status};
use crate::hex;
use crate::protocol::bus;
use crate::protocol::query::Query;
use crate::refusal::Refusal;
use crate::store::buses::BusName;
use crate::store::{self, Store};
use crate::workers::wait;
use crate::ws::{Frame, frames};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Answers a POST: it posts, if its key is the channel's.
pub(super) async fn answer(
    settings: &'static Settings,
    request: &mut Request<'_>,
    name: &str,
) -> Result<Reply, Refusal> {
    let query = Query::parse(&request.query)?;
    let name = BusName::new(name).ok_or_else(bus::bad_name)?;
    let given = query.get("key").and_then(hex::decode).unwrap_or_default();
    // Compared in constant time.
    keyed(settings, &name).await?.verify_slice(&given).map_err(|_| wrong_key())?;
    let body = request.body.read(settings.bus_message).await?;
    let text = std::str::from_utf8(&body).map_err(|_| not_text())?;
    let id = bus::notify(settings, &name, &frames::to_bus(Frame::Text(text))).await?;
    Ok(Reply::json(Status::Ok, format!(r#"{{"id":{id}}}"#)).header("Cache-Control", "no-store"))
}

fn not_text() -> Refusal {
    Refusal::new(Status::BadRequest, "The body is not UTF-8: send text, or JSON.")
}

fn wrong_key() -> Refusal {
    Refusal::new(
        Status::Forbidden,
        "The key is not this channel's: uhst-relay notify --key CHANNEL prints it, for ?key=….",
    )
}

async fn keyed(settings: &Settings, name: &BusName) -> Result<Hmac<Sha256>, store::Error> {
    let secret = match &settings.jwt_secret {
        Some(secret) => secret.as_bytes().to_vec(),
        None => Store::of(settings).secret().await?,
    };
    // HMAC takes a key of any length. The first line keeps it apart from all else that the secret signs.
    let mac = Hmac::<Sha256>::new_from_slice(&secret).map_err(|_| store::Error::BadSecret)?;
    Ok(mac.chain_update("notify\n").chain_update(name.as_str()))
}

fn channel(settings: &Settings, name: &str, length: usize) -> Result<BusName, String> {
    if length as u64 > settings.bus_message {
        return Err(format!("The message is longer than {} bytes (RELAY_BUS_MESSAGE).", settings.bus_message));
    }
    BusName::new(name).ok_or_else(|| bus::bad_name().to_string())
}

/// Gives a message of the application to everybody on a channel: to handlers as a `fifo` event.
///
/// # Errors
/// A sentence that says why it could not be.
pub fn notify(settings: &Settings, name: &str, text: &str) -> Result<u64, String> {
    let name = channel(settings, name, text.len())?;
    wait(bus::notify(settings, &name, &frames::to_bus(Frame::Text(text))))
        .map_err(|refused| Refusal::from(refused).to_string())
}

/// The key with which an application may post to a channel: 64 hexadecimal digits.
///
/// # Errors
/// A sentence that says why there is none.
pub fn key(settings: &Settings, name: &str) -> Result<String, String> {
    let name = channel(settings, name, 0)?;
    let key = wait(keyed(settings, &name)).map_err(|error| error.to_string())?.finalize().into_bytes();
    Ok(hex::encode(&key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channels_key_is_its_own() {
        let settings = Settings { jwt_secret: Some("secret".to_owned()), ..Settings::default() };
        let one = key(&settings, "a").unwrap();
        assert_eq!(one.len(), 64);
        assert_ne!(one, key(&settings, "b").unwrap());
        assert!(key(&settings, "a/b").is_err());
    }
}
