//! The codes of answers.

use std::fmt;

/// The codes that the relay gives by name, and their reason phrases.
macro_rules! statuses {
    ($($name:ident $code:literal $reason:literal,)*) => {
        /// Status codes that the relay gives (RFC 9110, 15; 429, 507 and 508 are RFC 6585, RFC 4918 and RFC 5842), and those that it passes on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
        #[expect(missing_docs, reason = "they are the RFC's own names")]
        pub enum Status {
            $($name,)*
            Passed(u16),
        }

        impl Status {
            /// Its three digits.
            #[must_use]
            pub fn code(self) -> u16 {
                match self {
                    $(Self::$name => $code,)*
                    Self::Passed(code) => code,
                }
            }
        }

        /// Nobody reads it, but a web server may want one. Of a code that others have given, and rarely give, it is the name of
        /// its class.
        fn reason(code: u16) -> &'static str {
            match code {
                $($code => $reason,)*
                206 => "Partial Content",
                302 => "Found",
                304 => "Not Modified",
                416 => "Range Not Satisfiable",
                ..300 => "Success",
                300..400 => "Redirection",
                400..500 => "Client Error",
                500.. => "Server Error",
            }
        }
    };
}

statuses! {
    SwitchingProtocols 101 "Switching Protocols",
    Ok 200 "OK",
    Created 201 "Created",
    NoContent 204 "No Content",
    BadRequest 400 "Bad Request",
    Unauthorized 401 "Unauthorized",
    Forbidden 403 "Forbidden",
    NotFound 404 "Not Found",
    MethodNotAllowed 405 "Method Not Allowed",
    RequestTimeout 408 "Request Timeout",
    Conflict 409 "Conflict",
    Gone 410 "Gone",
    LengthRequired 411 "Length Required",
    ContentTooLarge 413 "Content Too Large",
    UriTooLong 414 "URI Too Long",
    ExpectationFailed 417 "Expectation Failed",
    UpgradeRequired 426 "Upgrade Required",
    TooManyRequests 429 "Too Many Requests",
    RequestHeaderFieldsTooLarge 431 "Request Header Fields Too Large",
    InternalServerError 500 "Internal Server Error",
    NotImplemented 501 "Not Implemented",
    BadGateway 502 "Bad Gateway",
    ServiceUnavailable 503 "Service Unavailable",
    GatewayTimeout 504 "Gateway Timeout",
    InsufficientStorage 507 "Insufficient Storage",
    LoopDetected 508 "Loop Detected",
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code();
        write!(f, "{code} {}", reason(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_has_the_rfc_s_own_words() {
        for (code, line) in [
            (206, "206 Partial Content"),
            (302, "302 Found"),
            (304, "304 Not Modified"),
            (404, "404 Not Found"),
            (416, "416 Range Not Satisfiable"),
            (299, "299 Success"),
            (399, "399 Redirection"),
            (499, "499 Client Error"),
            (599, "599 Server Error"),
        ] {
            assert_eq!(Status::Passed(code).to_string(), line);
        }
    }
}
