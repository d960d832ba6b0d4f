//! Requests that are not requests. What two servers on one connection may read differently is how an attacker smuggles a
//! request past the first of them (RFC 9112, 11.2), so each of these is refused and its connection closed.

use serde_json::json;

use super::{Serve, ping};
use crate::relay::Talk as _;

/// What is smuggled: it must never be answered.
const SMUGGLED: u64 = 666_777_888;

/// A malformed request.
struct Case {
    /// What of it is malformed, by the section of RFC 9112, or where it says so of RFC 9110.
    section: &'static str,
    bytes: Vec<u8>,
    status: u16,
}

fn case(section: &'static str, bytes: impl Into<Vec<u8>>, status: u16) -> Case {
    Case { section, bytes: bytes.into(), status }
}

/// Request lines, each with a good head behind it.
const LINES: &[(&str, &[u8], u16)] = &[
    ("2.2 white space before the line", b" GET / HTTP/1.1", 400),
    ("3 two spaces behind the method", b"GET  / HTTP/1.1", 400),
    ("3 two spaces before the version", b"GET /  HTTP/1.1", 400),
    ("3 a space behind the version", b"GET / HTTP/1.1 ", 400),
    ("3 tabs", b"GET\t/\tHTTP/1.1", 400),
    ("3 a tab behind the version", b"GET / HTTP/1.1\t", 400),
    ("3 a vertical tab as white space", b"GET\x0b/\x0bHTTP/1.1", 400),
    ("3 only a method", b"GET", 400),
    ("3 no version, as in HTTP/0.9", b"GET /", 400),
    ("3 no target", b"GET HTTP/1.1", 400),
    ("3 an empty target", b"GET  HTTP/1.1", 400),
    ("3 no method", b"/ HTTP/1.1", 400),
    ("3.1 an empty method", b" / HTTP/1.1", 400),
    ("3.1 a method that is no token", b"GE(T / HTTP/1.1", 400),
    ("3.1 a method with a colon", b"GET: / HTTP/1.1", 400),
    ("3.1 a method with a byte above ASCII", b"G\xc9T / HTTP/1.1", 400),
    ("3.1 a method with a control character", b"G\x01T / HTTP/1.1", 400),
    ("2.3 the version in lower case", b"GET / http/1.1", 400),
    ("2.3 a version without minor", b"GET / HTTP/1", 400),
    ("2.3 a version without dot", b"GET / HTTP/11", 400),
    ("2.3 a version with a comma", b"GET / HTTP/1,1", 400),
    ("2.3 a version with two digits", b"GET / HTTP/1.10", 400),
    ("2.3 a version with a leading zero", b"GET / HTTP/01.1", 400),
    ("2.3 a version with something behind it", b"GET / HTTP/1.1x", 400),
    ("2.3 a version with a sign", b"GET / HTTP/+1.1", 400),
    ("2.3 a version with a space", b"GET / HTTP /1.1", 400),
    ("2.3 another protocol", b"GET / ICY/1.1", 400),
    ("9110 15.6.6 a major version to come", b"GET / HTTP/2.0", 400),
    ("9110 15.6.6 a major version from the past", b"GET / HTTP/0.9", 400),
    ("3.2 a space in the target", b"GET /a b HTTP/1.1", 400),
    ("3.2 a tab in the target", b"GET /\t HTTP/1.1", 400),
    ("3.2 a control character in the target", b"GET /\x01 HTTP/1.1", 400),
    ("3.2 DEL in the target", b"GET /\x7f HTTP/1.1", 400),
    ("3.2 NUL in the target", b"GET /\0 HTTP/1.1", 400),
    ("3.2 a byte that is no text in the target", b"GET /\xff HTTP/1.1", 400),
    ("3.2.1 NUL in the path", b"GET /%00 HTTP/1.1", 400),
    ("3.2.1 a path that is no text", b"GET /%ff HTTP/1.1", 400),
    ("3.2.1 a fragment", b"GET /#x HTTP/1.1", 400),
    ("3.2.1 a fragment behind the query", b"POST /?action=ping#x HTTP/1.1", 400),
    ("3.2.1 a path without slash", b"GET relay HTTP/1.1", 400),
    ("3.2.1 a query without path", b"GET ?action=ping HTTP/1.1", 400),
    ("3.2.2 another scheme", b"GET ftp://relay/ HTTP/1.1", 400),
    ("3.2.2 one slash behind the scheme", b"GET http:/relay/ HTTP/1.1", 400),
    ("3.2.2 no scheme", b"GET ://relay/ HTTP/1.1", 400),
    ("9110 4.2.1 an absolute target without host", b"GET http:///x HTTP/1.1", 400),
    ("9110 4.2.1 an absolute target of nothing", b"GET http:// HTTP/1.1", 400),
    ("9110 4.2.4 a user in an absolute target", b"GET http://me:secret@relay/ HTTP/1.1", 400),
    ("3.2.2 a port that is no number", b"GET http://relay:http/ HTTP/1.1", 400),
    ("3.2.3 an authority without CONNECT", b"GET relay:80 HTTP/1.1", 400),
    ("9110 9.3.6 a tunnel", b"CONNECT relay:80 HTTP/1.1", 400),
    ("9110 9.3.6 a tunnel to nowhere", b"CONNECT / HTTP/1.1", 405),
    ("3.2.4 an asterisk without OPTIONS", b"GET * HTTP/1.1", 400),
    ("3.2.4 an asterisk with something behind it", b"OPTIONS *x HTTP/1.1", 400),
];

/// Header fields, in a request that is good without them.
const FIELDS: &[(&str, &[u8], u16)] = &[
    ("6.3 both lengths", b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
    ("6.3 both lengths, the other way round", b"Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
    ("6.3 both lengths, of no content", b"Transfer-Encoding: chunked\r\nContent-Length: 0", 400),
    ("6.3 both lengths, one in disguise", b"Content-Length: 5\r\ntRANSFER-eNCODING:\tCHUNKED", 400),
    ("6.3 two equal lengths", b"Content-Length: 5\r\nContent-Length: 5", 400),
    ("6.3 two different lengths", b"Content-Length: 5\r\nContent-Length: 0", 400),
    ("6.3 two lengths with a field between them", b"Content-Length: 5\r\nA: b\r\ncontent-length: 6", 400),
    ("6.3 a list of equal lengths", b"Content-Length: 5, 5", 400),
    ("6.3 a list of different lengths", b"Content-Length: 5,6", 400),
    ("6.2 a positive length", b"Content-Length: +5", 400),
    ("6.2 a negative length", b"Content-Length: -1", 400),
    ("6.2 minus nothing", b"Content-Length: -0", 400),
    ("6.2 a hexadecimal length", b"Content-Length: 0x5", 400),
    ("6.2 hexadecimal digits", b"Content-Length: A", 400),
    ("6.2 two numbers", b"Content-Length: 5 5", 400),
    ("6.2 a length with a semicolon", b"Content-Length: 5;", 400),
    ("6.2 a length in quotes", b"Content-Length: \"5\"", 400),
    ("6.2 an empty length", b"Content-Length:", 400),
    ("6.2 a length in words", b"Content-Length: five", 400),
    ("6.2 a fraction", b"Content-Length: 5.0", 400),
    ("6.2 an exponent", b"Content-Length: 5e0", 400),
    ("6.2 a digit that is not ASCII", b"Content-Length: \xd9\xa5", 400),
    ("6.2 white space that is not ASCII before a length", b"Content-Length: \xc2\xa05", 400),
    ("6.2 white space that is not ASCII behind a length", b"Content-Length: 5\xe3\x80\x80", 400),
    ("6.2 a byte that is no text", b"Content-Length: 5\xff", 400),
    ("6.2 a length above 64 bits", b"Content-Length: 18446744073709551616", 400),
    ("6.2 a length that is 5 above 64 bits", b"Content-Length: 18446744073709551621", 400),
    ("6.1 a coding of old", b"Transfer-Encoding: identity", 400),
    ("6.3 chunked is not there", b"Transfer-Encoding: gzip", 400),
    ("6.3 chunked is not the last", b"Transfer-Encoding: chunked, gzip", 400),
    ("6.3 chunked is not the last of old", b"Transfer-Encoding: chunked, identity", 400),
    ("6.1 another coding below chunked", b"Transfer-Encoding: gzip, chunked", 501),
    ("6.1 an unknown coding below chunked", b"Transfer-Encoding: cow, chunked", 501),
    ("7.1 chunked twice", b"Transfer-Encoding: chunked, chunked", 501),
    ("7.1 chunked twice, in two lines", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
    ("6.1 a second coding in a second line", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400),
    ("6.1 a second coding in a line before", b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", 501),
    ("6.1 a coding that looks like chunked", b"Transfer-Encoding: xchunked", 400),
    ("6.1 a coding that begins like chunked", b"Transfer-Encoding: chunkedx", 400),
    ("6.1 chunked in two words", b"Transfer-Encoding: chun ked", 400),
    ("6.1 chunked with a parameter", b"Transfer-Encoding: chunked;a=b", 400),
    ("6.1 chunked in quotes", b"Transfer-Encoding: \"chunked\"", 400),
    ("6.1 an empty coding", b"Transfer-Encoding:", 400),
    ("6.1 an empty coding before chunked", b"Transfer-Encoding: , chunked", 501),
    ("6.1 an empty coding behind chunked", b"Transfer-Encoding: chunked,", 400),
    ("6.1 a vertical tab behind chunked", b"Transfer-Encoding: chunked\x0b", 400),
    ("6.1 a form feed before chunked", b"Transfer-Encoding: \x0cchunked", 400),
    ("6.1 white space that is not ASCII before chunked", b"Transfer-Encoding: \xc2\xa0chunked", 400),
    ("6.1 white space that is not ASCII behind chunked", b"Transfer-Encoding: chunked\xc2\x85", 400),
    ("5.1 a space before the colon", b"Content-Length : 5", 400),
    ("5.1 a tab before the colon", b"Content-Length\t: 5", 400),
    ("5.1 a space before the colon of a coding", b"Transfer-Encoding : chunked", 400),
    ("5 no colon", b"Content-Length 5", 400),
    ("5 only a name", b"Foo", 400),
    ("5 an empty name", b": 5", 400),
    ("5 a name of white space", b" : 5", 400),
    ("5 a name that is no token", b"Content(Length): 5", 400),
    ("5 a name with a byte above ASCII", b"Content-L\xc3\xa9ngth: 5", 400),
    ("5 a name with NUL", b"Content-Length\0: 5", 400),
    ("5.2 a folded field", b"A: b\r\n c", 400),
    ("5.2 a field folded by a tab", b"A: b\r\n\tc", 400),
    ("5.2 a field folded before its value", b"Transfer-Encoding:\r\n chunked", 400),
    ("5.2 a length that looks folded", b"A: b\r\n Content-Length: 5", 400),
    ("5.2 a fold of white space alone", b"A: b\r\n \r\nB: c", 400),
    ("9110 5.5 NUL in a value", b"A: b\0c", 400),
    ("9110 5.5 CR in a value", b"A: b\rTransfer-Encoding: chunked", 400),
    ("9110 5.5 CR at the end of a value", b"A: b\r", 400),
    ("2.2 LF in a value", b"A: b\nTransfer-Encoding: chunked", 400),
    ("9110 5.5 a control character in a value", b"A: b\x01c", 400),
    ("9110 5.5 a backspace in a value", b"A: b\x08c", 400),
    ("9110 5.5 DEL in a value", b"A: b\x7fc", 400),
    ("9110 7.2 a second Host", b"Host: other", 400),
    ("9110 7.2 the same Host again", b"Host: relay", 400),
    ("9110 7.2 a second Host in disguise", b"hOST:other", 400),
    ("9110 10.1.1 an unknown expectation", b"Expect: 200-ok", 417),
    ("9110 10.1.1 one expectation too many", b"Expect: 100-continue, wonders", 417),
    ("9110 10.1.1 no expectation at all", b"Expect:", 417),
];

/// Host, or what stands for it, in a request that lacks nothing else.
const HOSTS: &[(&str, &[u8])] = &[
    ("3.2 no Host", b""),
    ("3.2 Host with a path", b"Host: relay/x\r\n"),
    ("3.2 Host with a backslash", b"Host: relay\\x\r\n"),
    ("3.2 Host with a query", b"Host: relay?x\r\n"),
    ("3.2 Host with a fragment", b"Host: relay#x\r\n"),
    ("3.2 Host with a user", b"Host: me@relay\r\n"),
    ("3.2 a list of Hosts", b"Host: relay, other\r\n"),
    ("3.2 Host in two words", b"Host: relay other\r\n"),
    ("3.2 Host in a tag", b"Host: <relay>\r\n"),
    ("3.2 Host in quotes", b"Host: \"relay\"\r\n"),
    ("3.2 a URL as Host", b"Host: http://relay\r\n"),
    ("3.2 Host with a port that is no number", b"Host: relay:http\r\n"),
    ("3.2 Host with a negative port", b"Host: relay:-80\r\n"),
    ("3.2 Host with two ports", b"Host: relay:80:80\r\n"),
    ("3.2 Host with half a bracket", b"Host: [::1\r\n"),
    ("3.2 Host with something behind the bracket", b"Host: [::1]x\r\n"),
    ("3.2 Host with no address in brackets", b"Host: [relay]\r\n"),
    ("3.2 Host with a byte above ASCII", b"Host: r\xc3\xa9lay\r\n"),
    ("3.2 Host with white space that is not ASCII", b"Host: \xc2\xa0relay\r\n"),
    ("5.1 Host with a space before the colon", b"Host : relay\r\n"),
    ("2.2 white space before Host", b" Host: relay\r\n"),
    ("2.2 a tab before Host", b"\tHost: relay\r\n"),
    ("2.2 a line of white space before Host", b" \r\nHost: relay\r\n"),
];

/// Whole heads.
const HEADS: &[(&str, &[u8], u16)] = &[
    ("2.2 LF alone as line end", b"POST /?action=ping HTTP/1.1\nHost: relay\n\n", 400),
    ("2.2 LF alone behind the request line", b"POST /?action=ping HTTP/1.1\nHost: relay\r\n\r\n", 400),
    ("2.2 LF alone behind a field", b"POST /?action=ping HTTP/1.1\r\nHost: relay\nA: b\r\n\r\n", 400),
    ("2.2 LF alone behind the last field", b"POST /?action=ping HTTP/1.1\r\nHost: relay\n\r\n", 400),
    ("2.2 LF alone as the empty line", b"POST /?action=ping HTTP/1.1\r\nHost: relay\r\n\n", 400),
    ("2.2 CR alone as line end", b"POST /?action=ping HTTP/1.1\rHost: relay\r\r", 400),
    ("2.2 CR alone behind a field", b"POST /?action=ping HTTP/1.1\r\nHost: relay\rA: b\r\n\r\n", 400),
    ("2.2 CR twice", b"POST /?action=ping HTTP/1.1\r\r\nHost: relay\r\n\r\n", 400),
    ("2.2 LF before CR", b"POST /?action=ping HTTP/1.1\n\rHost: relay\n\r\n\r", 400),
    ("2.2 an empty line of LF before the request", b"\nPOST /?action=ping HTTP/1.1\r\nHost: relay\r\n\r\n", 400),
    ("2.2 CR before the request", b"\rPOST /?action=ping HTTP/1.1\r\nHost: relay\r\n\r\n", 400),
    ("2.2 bytes that are no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ("2.2 an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 400),
    ("2.2 a field in place of the line", b"Host: relay\r\n\r\n", 400),
    ("6.1 a coding in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ("6.1 both in HTTP/1.0", b"POST / HTTP/1.0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ("6.3 two lengths in HTTP/1.0", b"POST / HTTP/1.0\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\n", 400),
    ("3.2 two Hosts in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
];

/// Bodies in chunks, of a message that would be delivered.
const CHUNKS: &[(&str, &[u8])] = &[
    ("7.1 a negative size", b"-5\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a positive size", b"+5\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a size with 0x", b"0x5\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a last chunk with 0x", b"5\r\n12345\r\n0x0\r\n\r\n"),
    ("7.1 a size with an underscore", b"0_5\r\n12345\r\n0\r\n\r\n"),
    ("7.1 an empty size", b"\r\n12345\r\n0\r\n\r\n"),
    ("7.1 only an extension", b";a=b\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a space before the size", b" 5\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a space behind the size", b"5 \r\n12345\r\n0\r\n\r\n"),
    ("7.1 a tab behind the size", b"5\t\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a form feed behind the size", b"5\x0c\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a form feed before an extension", b"5\x0c;a=b\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a space in the size", b"0 5\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a size in quotes", b"\"5\"\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a size that is no number", b"g\r\n12345\r\n0\r\n\r\n"),
    ("7.1 something behind the size", b"5g\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a comma behind the size", b"5,5\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a digit that is not ASCII", b"\xd9\xa5\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a size above 64 bits", b"10000000000000005\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a size of 64 bits", b"FFFFFFFFFFFFFFFF\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a size of 63 bits", b"8000000000000000\r\n12345\r\n0\r\n\r\n"),
    ("7.1 LF alone behind the size", b"5\n12345\r\n0\r\n\r\n"),
    ("7.1 CR alone behind the size", b"5\r12345\r\n0\r\n\r\n"),
    ("7.1 CR twice behind the size", b"5\r\r\n12345\r\n0\r\n\r\n"),
    ("7.1 NUL behind the size", b"5\0\r\n12345\r\n0\r\n\r\n"),
    ("7.1 LF alone behind the data", b"5\r\n12345\n0\r\n\r\n"),
    ("7.1 CR alone behind the data", b"5\r\n12345\r0\r\n\r\n"),
    ("7.1 nothing behind the data", b"5\r\n123450\r\n\r\n"),
    ("7.1 two bytes behind the data that are no line end", b"5\r\n12345xx0\r\n\r\n"),
    ("7.1 more data than its size", b"3\r\n12345\r\n0\r\n\r\n"),
    ("7.1 less data than its size", b"7\r\n12345\r\n0\r\n\r\n"),
    ("7.1 a last chunk that ends with LF", b"5\r\n12345\r\n0\n\r\n"),
    ("7.1 an end of LF alone", b"5\r\n12345\r\n0\r\n\n"),
    ("7.1.1 CR in an extension", b"5;a\rb\r\n12345\r\n0\r\n\r\n"),
    ("7.1.1 LF in an extension", b"5;a=\"\n\"\r\n12345\r\n0\r\n\r\n"),
    ("7.1.1 NUL in an extension", b"5;a=\0\r\n12345\r\n0\r\n\r\n"),
    ("7.1.1 a control character in an extension", b"5;a=\x01\r\n12345\r\n0\r\n\r\n"),
    ("7.1.2 a trailer without colon", b"5\r\n12345\r\n0\r\nA\r\n\r\n"),
    ("7.1.2 a trailer without name", b"5\r\n12345\r\n0\r\n: b\r\n\r\n"),
    ("7.1.2 a trailer whose name is no token", b"5\r\n12345\r\n0\r\nA(: b\r\n\r\n"),
    ("7.1.2 a trailer with a space before the colon", b"5\r\n12345\r\n0\r\nA : b\r\n\r\n"),
    ("7.1.2 a folded trailer", b"5\r\n12345\r\n0\r\nA: b\r\n c\r\n\r\n"),
    ("7.1.2 a trailer that ends with LF", b"5\r\n12345\r\n0\r\nA: b\n\r\n"),
    ("7.1.2 CR in a trailer", b"5\r\n12345\r\n0\r\nA: b\rc\r\n\r\n"),
    ("7.1.2 NUL in a trailer", b"5\r\n12345\r\n0\r\nA: b\0\r\n\r\n"),
    ("7.1.2 a request in place of a trailer", b"5\r\n12345\r\n0\r\nGET / HTTP/1.1\r\n\r\n"),
];

const PING_IN_CHUNKS: &[u8] = b"POST /?action=ping HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n";

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// All cases; `token` sends a message.
fn cases(token: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(section, line, status) in LINES {
        cases.push(case(section, join(&[line, b"\r\nHost: relay\r\n\r\n"]), status));
    }
    // Five bytes that end a body in chunks too: whichever of two lengths is believed, the next request begins behind them.
    for &(section, fields, status) in FIELDS {
        let head = join(&[b"POST /?action=ping HTTP/1.1\r\nHost: relay\r\n", fields, b"\r\n\r\n"]);
        cases.push(case(section, join(&[&head, b"0\r\n\r\n"]), status));
    }
    for &(section, host) in HOSTS {
        cases.push(case(section, join(&[b"POST /?action=ping HTTP/1.1\r\n", host, b"\r\n"]), 400));
    }
    for &(section, head, status) in HEADS {
        cases.push(case(section, join(&[head, b"0\r\n\r\n"]), status));
    }
    let chunked = format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n");
    for &(section, chunks) in CHUNKS {
        cases.push(case(section, join(&[chunked.as_bytes(), chunks]), 400));
        // Also where nobody has a use for the body.
        cases.push(case(section, join(&[PING_IN_CHUNKS, chunks]), 400));
    }

    let ping = |fields: &str| format!("POST /?action=ping HTTP/1.1\r\nHost: relay\r\n{fields}\r\n\r\n");
    let x = |count| "x".repeat(count);
    let many = |count| "A: b\r\n".repeat(count);
    let chunks = |body: &str| format!("{chunked}{body}");
    for (section, bytes, status) in [
        ("3 a target longer than 8 KiB", format!("GET /{} HTTP/1.1\r\nHost: relay\r\n\r\n", x(8192)), 414),
        ("3 a target longer than 16 KiB", format!("GET /?{} HTTP/1.1\r\nHost: relay\r\n\r\n", x(20_000)), 431),
        ("3 a target without end", format!("GET /{}", x(100_000)), 431),
        ("3 a method without end", x(100_000), 431),
        ("6585 5 a field longer than 16 KiB", ping(&format!("A: {}", x(20_000))), 431),
        ("6585 5 a name longer than 16 KiB", ping(&format!("{}: b", x(20_000))), 431),
        ("6585 5 a field without end", format!("GET / HTTP/1.1\r\nHost: relay\r\nA: {}", x(100_000)), 431),
        ("6585 5 a hundred fields and one", ping(many(100).trim_end()), 431),
        ("6585 5 fields without end", format!("GET / HTTP/1.1\r\nHost: relay\r\n{}", many(20_000)), 431),
        ("6585 5 a thousand lengths", ping("Content-Length: 5\r\n".repeat(1000).trim_end()), 431),
        ("6.2 a length of a hundred digits", ping(&format!("Content-Length: {}", "1".repeat(100))), 400),
        ("7.1 a size of a hundred digits", chunks(&format!("{}5\r\n12345\r\n0\r\n\r\n", "0".repeat(100))), 400),
        ("7.1 a size without end", chunks(&"0".repeat(100_000)), 400),
        ("7.1.1 a long extension", chunks(&format!("5;{}\r\n12345\r\n0\r\n\r\n", x(300))), 400),
        ("7.1.1 an extension without end", chunks(&format!("5;{}", x(100_000))), 400),
        ("7.1.2 a long trailer", chunks(&format!("5\r\n12345\r\n0\r\nA: {}\r\n\r\n", x(10_000))), 400),
        ("7.1.2 many trailers", chunks(&format!("5\r\n12345\r\n0\r\n{}\r\n", many(5000))), 400),
    ] {
        cases.push(case(section, bytes, status));
    }
    cases
}

/// What is taken although it could be refused, and why nobody else can see another request in it. After a body in chunks
/// the connection ends, so that nothing that follows one is ever answered (RFC 9112, 6.1).
const TAKEN: &[(&str, &str)] = &[
    ("3.2.1 a fragment", "it is left out, and the rest of the target is what any server sees"),
    ("3.2.1 a fragment behind the query", "as above"),
    ("6.3 both lengths", "RFC 9112, 6.3: the chunks count, and the connection ends"),
    ("6.3 both lengths, the other way round", "as above"),
    ("6.3 both lengths, of no content", "as above"),
    ("6.3 both lengths, one in disguise", "as above"),
    ("6.3 two equal lengths", "RFC 9112, 6.3: a recipient may take them as one"),
    (
        "2.2 LF in a value",
        "RFC 9112, 2.2: a line may end with LF alone; the second line is a coding, so the connection ends",
    ),
    ("2.2 LF alone as line end", "RFC 9112, 2.2: a recipient may take it as the end of a line"),
    ("2.2 LF alone behind the request line", "as above"),
    ("2.2 LF alone behind a field", "as above"),
    ("2.2 LF alone behind the last field", "as above"),
    ("2.2 LF alone as the empty line", "as above"),
    ("2.2 an empty line of LF before the request", "RFC 9112, 2.2: empty lines before a request are ignored"),
    (
        "7.1 a space behind the size",
        "RFC 9112, 7.1.1: white space before an extension, which there is not; the connection ends",
    ),
    ("7.1 a tab behind the size", "as above"),
    ("7.1 a size of 64 bits", "the body never ends, and nothing follows it"),
    ("7.1 a size of 63 bits", "as above"),
    ("7.1 an end of LF alone", "the connection ends"),
    ("7.1.1 NUL in an extension", "extensions are passed over (RFC 9112, 7.1.1); the connection ends"),
    ("7.1.1 a control character in an extension", "as above"),
    ("7.1.1 a long extension", "as above, up to 16 KiB"),
    ("7.1.2 a trailer that ends with LF", "trailers are dropped (RFC 9112, 7.1.2); the connection ends"),
    ("7.1.2 a long trailer", "as above, up to 16 KiB"),
    ("7.1 a size of a hundred digits", "zeros before a size change nothing; the connection ends"),
];

/// Sends what is taken, with a good request behind it. True where a message was sent with it.
#[track_caller]
fn expect_taken(relay: &Serve, Case { section, bytes, .. }: &Case, why: &str, piece: usize) -> bool {
    let whole = join(&[bytes, ping(SMUGGLED).as_bytes()]);
    let mut wire = relay.wire();
    let _ = whole.chunks(piece).all(|piece| wire.try_send(piece));
    wire.done();
    let rest = wire.rest();
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let has_chunks = text.contains("transfer-encoding");
    let answers = rest.matches("HTTP/1.").count();
    // What follows a head without a body is the next request, good or not.
    assert!(answers == if has_chunks { 1 } else { 2 }, "{section} ({why}), in pieces of {piece}: {rest}");
    assert!(!(has_chunks && rest.contains(&SMUGGLED.to_string())), "{section} ({why}): {rest}");
    rest.starts_with("HTTP/1.1 200 ") && text.contains("token=")
}

/// Sends it, with a good request behind it, and looks at all that comes back.
#[track_caller]
fn expect_refusal(relay: &Serve, Case { section, bytes, status }: &Case, piece: usize) {
    let whole = join(&[bytes, ping(SMUGGLED).as_bytes()]);
    let mut wire = relay.wire();
    // The refusal may come, and the connection end, before all of it is sent.
    let _ = whole.chunks(piece).all(|piece| wire.try_send(piece));
    let reply = wire.answer();
    let what = format!("{section}, in pieces of {piece} bytes: {reply:?}");
    assert_eq!(reply.status, *status, "{what}");
    assert_eq!(reply.header("connection"), Some("close"), "{what}");
    if !reply.body.is_empty() {
        reply.expect_error(*status);
    }
    let rest = wire.rest();
    assert!(!rest.contains(&SMUGGLED.to_string()), "{what} and then {rest}: a request was smuggled through");
    assert_eq!(rest, "", "{what}: one answer, and the end");
}

#[test]
fn nothing_is_smuggled_past_a_proxy_and_nothing_malformed_hurts() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    let cases = cases(&token);
    assert!(cases.len() >= 60);
    for case in &cases {
        // Byte by byte, except for what takes a while.
        let piece = if case.bytes.len() < 1000 { 1 } else { 999 };
        for piece in [usize::MAX, piece] {
            match TAKEN.iter().find(|(section, _)| *section == case.section) {
                Some((_, why)) if expect_taken(&relay, case, why, piece) => _ = stream.body(),
                Some(_) => {}
                None => expect_refusal(&relay, case, piece),
            }
            relay.serves(1);
        }
    }
    relay.send(&token, "1").expect(200);
    assert_eq!(stream.body(), json!(1), "nothing of what was refused arrives");
    relay.serves(2);
}

#[test]
fn a_request_that_ends_early_is_refused() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    // RFC 9112, 8: whoever ends in its head may be told nothing.
    for head in ["G", "GET / HTTP/1.1", "GET / HTTP/1.1\r\nHost: relay\r\n"] {
        let mut wire = relay.wire();
        wire.send(head);
        wire.done();
        wire.expect_end();
    }
    for request in [
        format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nContent-Length: 3\r\n\r\n12"),
        format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123"),
        format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n"),
        format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n0\r\n"),
    ] {
        let mut wire = relay.wire();
        wire.send(&request);
        wire.done();
        let reply = wire.answer();
        assert_eq!(reply.header("connection"), Some("close"), "{request:?}");
        reply.expect_error(400);
        wire.expect_end();
    }
    relay.send(&token, "1").expect(200);
    assert_eq!(stream.body(), json!(1), "half a message does not arrive");
}

/// What is unusual but right: strictness must not keep anybody out.
#[test]
fn what_is_unusual_but_right_is_served() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    let send = |head: &str, body: &str| format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\n{head}\r\n\r\n{body}");
    let chunks = |body: &str| send("Transfer-Encoding: chunked", body);
    let line = |line: &str| format!("{}\r\nHost: relay\r\n\r\n", line.replace("TOKEN", &token));
    let host = |host: &str| format!("POST /?token={token} HTTP/1.1\r\n{host}\r\nContent-Length: 5\r\n\r\n12345");
    let target = format!("POST /?token={token}&x={} HTTP/1.1", "x".repeat(8000 - token.len()));
    let fields = "A: b\r\n".repeat(98) + "Content-Length: 5";
    let requests = [
        // RFC 9112
        ("2.2 an empty line before", format!("\r\n{}", send("Content-Length: 5", "12345"))),
        ("3.2.2 absolute form", line("POST http://relay/?token=TOKEN HTTP/1.1")),
        ("3.2.2 absolute form of another relay", line("POST HTTPS://other:443/?token=TOKEN HTTP/1.1")),
        ("3.2.2 absolute form of an address", line("POST http://[::1]:80/?token=TOKEN HTTP/1.1")),
        ("3.2.2 absolute form without path", line("POST http://relay?token=TOKEN HTTP/1.1")),
        ("3.2 a URL in the query", line("POST /?token=TOKEN&x=http://me@other/ HTTP/1.1")),
        ("3.2 an empty Host", host("Host:")),
        ("3.2 Host with a port", host("Host: relay.example:8080")),
        ("3.2 Host with an empty port", host("Host: relay:")),
        ("3.2 an address as Host", host("Host: 127.0.0.1")),
        ("3.2 an address in brackets as Host", host("Host: [2001:db8::1]:443")),
        ("3.2 an encoded name as Host", host("Host: r%C3%A9lay_1.example")),
        ("5.1 no space behind the colon", host("Host:relay")),
        ("5.1 white space around a value", host("Host: \t relay \t ")),
        ("5.1 white space around a length", send("Content-Length: \t 5 \t", "12345")),
        ("5.1 white space around a coding", send("Transfer-Encoding:\tchunked \t", "5\r\n12345\r\n0\r\n\r\n")),
        ("9110 5.1 names in any case", send("cONTENT-lENGTH: 5", "12345")),
        ("9110 5.5 text above ASCII", send("X: \u{e9}\u{6f22}\r\nContent-Length: 5", "12345")),
        ("9110 5.5 an empty value", send("X:\r\nContent-Length: 5", "12345")),
        ("9110 5.6.2 a strange name", send("!#$%&'*+-.^_`|~: b\r\nContent-Length: 5", "12345")),
        ("6.1 a coding in capitals", send("TRANSFER-ENCODING: CHUNKED", "5\r\n12345\r\n0\r\n\r\n")),
        ("6.2 zeros before a length", send("Content-Length: 0000005", "12345")),
        ("7.1 many chunks", chunks("1\r\n1\r\n1\r\n2\r\n2\r\n34\r\n1\r\n5\r\n0\r\n\r\n")),
        ("7.1 zeros before a size", chunks("0005\r\n12345\r\n000\r\n\r\n")),
        ("7.1 large digits", chunks("A\r\n     12345\r\n0\r\n\r\n")),
        ("7.1 small digits", chunks("a\r\n     12345\r\n0\r\n\r\n")),
        ("7.1.1 extensions", chunks("5;a;b=c;d=\"e;\\\" f\"\r\n12345\r\n0;last\r\n\r\n")),
        ("7.1.1 white space before an extension", chunks("5 \t; a = b\r\n12345\r\n0 ;c\r\n\r\n")),
        ("7.1.2 trailers", chunks("5\r\n12345\r\n0\r\nA: b\r\nContent-Length: 99\r\nHost: x\r\n\r\n")),
        ("9110 10.1.1 an expectation in capitals", send("Expect: 100-CONTINUE\r\nContent-Length: 5", "12345")),
        ("a target of 8,000 bytes", line(&target)),
        ("a hundred fields", send(&fields, "12345")),
    ];
    for (section, request) in requests {
        let mut wire = relay.wire();
        wire.send(format!("{request}{}", ping(7)));
        let mut reply = wire.answer();
        if reply.status == 100 {
            reply = wire.answer();
        }
        assert_eq!(reply.status, 200, "{section}: {reply:?}");
        // A request line alone has no body.
        let body = if request.contains("12345") || request.contains("\r\n2\r\n34") { json!(12345) } else { json!({}) };
        assert_eq!(stream.body(), body, "{section}");
        // RFC 9112, 6.1: chunks end the connection, so that nothing can follow a body that may have had a length too.
        if request.to_ascii_lowercase().contains("transfer-encoding") {
            wire.expect_end();
        } else {
            wire.expect_pong(7);
        }
    }
}
