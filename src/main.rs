//! Chooses the door: a web server's request (CGI) or a person's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    // RFC 3875, 4.1: a web server has to set both, and some small ones forget the first. Argv is never looked at then,
    // because the server may have made it from the query string (RFC 3875, 4.4), and a stranger must not reach the
    // command line with `?serve`.
    if ["GATEWAY_INTERFACE", "REQUEST_METHOD"].iter().any(|name| std::env::var_os(name).is_some()) {
        uhst_relay::cli::answer()
    } else {
        uhst_relay::cli::run(std::env::args_os().skip(1))
    }
}
