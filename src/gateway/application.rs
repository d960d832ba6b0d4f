//! What the doors lead to.

use super::reply::Reply;
use super::request::Request;
use crate::config::{SettingError, Settings};
use std::pin::Pin;

/// An answer on its way.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Reply> + Send + 'a>>;

/// What a door asks of the application behind it, of which it knows nothing else.
pub trait Application: Send + Sync {
    /// Answers a request.
    fn answer<'a>(&'a self, settings: &'static Settings, request: &'a mut Request<'_>) -> Answering<'a>;

    /// Answers a request where the settings cannot be read.
    fn answer_without_settings(&self, error: &SettingError, request: &Request<'_>) -> Reply;

    /// Makes a refusal that the door has found itself look like one of the application's.
    fn refuse(&self, settings: &Settings, request: &Request<'_>, refusal: Reply) -> Reply;

    /// Whether a POST to this path may come with no body and without saying so (RFC 9112, 6.3), which some web servers refuse.
    fn takes_post_without_length(&self, path: &str) -> bool;

    /// Whether it has work to do that nobody waits for.
    fn has_work(&self, settings: &Settings) -> bool;

    /// Does a little of that work.
    fn work(&self, settings: &Settings);
}
