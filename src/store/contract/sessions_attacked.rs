//! What a home promises of sessions when somebody is out to break them, or the machine gives way.

use super::sessions::{client_closed, host, lost, registered, take};
use crate::store::Error;
use crate::store::sessions::{Claim, Refused, Standing};
use std::thread::sleep;
use std::time::Duration;

#[test]
fn clients_that_never_listened_are_forgotten_however_much_the_host_says() {
    for mut relay in registered() {
        (relay.settings.session_lifetime, relay.settings.message_lifetime) =
            (Duration::from_millis(50), Duration::from_millis(50));
        relay.settings.max_clients = 3;
        let (_host, _listening) = (relay.listen(&host("one")), relay.enter("c"));
        for number in 0..12 {
            relay.join(&format!("never {number}")).unwrap();
            sleep(Duration::from_millis(60));
            relay.broadcast("one", "said").unwrap();
            relay.sweep();
        }
    }
}
