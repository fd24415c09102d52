//! One GET of a credential endpoint, by hand: no redirects, no cookies, bounded in size and time.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::calendar;
use crate::check::link::Link;
use crate::check::report::Step;
use crate::check::tls::{self, BadCertificate, Trust};
use crate::check::uri::split_port;

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// Where to ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    /// Over TLS.
    pub is_https: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// 80, 443 or as given.
    pub port: u16,
    /// Path and query.
    pub path: String,
}

/// Takes an http or https URL apart; `None` if it is another scheme.
pub fn parse_url(text: &str) -> Option<Result<Url, String>> {
    let (scheme, rest) = text.split_once("://")?;
    let is_https = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let wrong = |why: &str| Some(Err(format!("{text}: {why}")));
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if authority.contains('@') {
        return wrong("a login can't stand in the URL; give it with --header \"Authorization: ...\"");
    }
    if path.bytes().any(|b| b <= b' ' || b == 0x7F) {
        return wrong("there is a blank or control character in it");
    }
    let Some((host, port)) = split_port(authority) else { return wrong("host or port is not right") };
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let port = port.unwrap_or(if is_https { 443 } else { 80 });
    Some(Ok(Url { is_https, host: host.to_owned(), port, path }))
}

/// An HTTP answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Its clock, seconds since 1970.
    pub(super) fn date(&self) -> Option<u64> {
        unix_of_date(self.header("date")?)
    }
}

/// Asks one address; the steps tell what went wrong where there is no reply.
pub(super) async fn get(
    url: &Url,
    address: SocketAddr,
    headers: &[String],
    trust: &Trust,
    within: Duration,
    now: u64,
) -> (Option<Reply>, Vec<Step>) {
    let stream = match Link::connect(address, within).await {
        Ok(stream) => stream,
        Err(error) => {
            let remedy = format!("check that the endpoint runs and that TCP port {} is open", url.port);
            return (None, vec![Step::fail("reach", error.text(), remedy)]);
        }
    };
    let mut steps = vec![Step::ok("reach", "connected")];
    let asked = if url.is_https {
        // A header may hold a key, so a certificate that is not right ends it here.
        let (stream, mut seen) =
            tls::handshake(stream, &url.host, trust, BadCertificate::Ends, &["http/1.1"], within, now).await;
        steps.append(&mut seen);
        let Some(stream) = stream else { return (None, steps) };
        tokio::time::timeout(within, exchange(stream, url, headers)).await
    } else {
        tokio::time::timeout(within, exchange(stream, url, headers)).await
    };
    let reply = match asked {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => {
            steps.push(Step::fail("http", error, "check that an HTTP server answers on this port"));
            return (None, steps);
        }
        Err(_) => {
            let text = format!("no answer within {} ms", within.as_millis());
            steps.push(Step::fail(
                "http",
                text,
                "look at the endpoint's log: it accepts connections but does not answer",
            ));
            return (None, steps);
        }
    };
    steps.push(status(&reply));
    ((reply.status / 100 == 2).then_some(reply), steps)
}

fn status(reply: &Reply) -> Step {
    let detail = format!("status {}", reply.status);
    match reply.status {
        200..=299 => Step::ok("http", detail),
        300..=399 => {
            let to = reply.header("location").unwrap_or("?");
            Step::fail(
                "http",
                format!("{detail}: it sends us to {}", crate::check::remedy::printable(to)),
                "check that URL instead",
            )
        }
        400 => Step::fail("http", detail, "the endpoint wants other parameters, such as ?service=turn or a username"),
        401 | 403 => Step::fail(
            "http",
            detail,
            "give the key that the endpoint wants, such as --header \"Authorization: Bearer KEY\"",
        ),
        404 | 405 => Step::fail("http", detail, "check the path: throughway answers GET /v1/credentials"),
        429 => {
            let after = reply.header("retry-after").map(|after| format!(" (Retry-After: {after})")).unwrap_or_default();
            Step::fail("http", detail, format!("asked too often: wait{after}, or raise the rate limit"))
        }
        _ => Step::fail("http", detail, "look at the endpoint's log"),
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    url: &Url,
    headers: &[String],
) -> Result<Reply, String> {
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let mut request = format!("GET {} HTTP/1.1\r\nHost: {host}", url.path);
    if url.port != if url.is_https { 443 } else { 80 } {
        request.push_str(&format!(":{}", url.port));
    }
    request.push_str("\r\nAccept: application/json\r\nUser-Agent: throughway-check\r\nConnection: close\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    stream.flush().await.map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await;
    // A peer that ends TLS without saying goodbye has still answered.
    match (read, parse_reply(&bytes)) {
        (_, Ok(reply)) => Ok(reply),
        (Err(error), Err(_)) => Err(error.to_string()),
        (Ok(_), Err(error)) => Err(error),
    }
}

/// Takes an answer apart that is here as a whole.
pub(crate) fn parse_reply(bytes: &[u8]) -> Result<Reply, String> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or("no HTTP header came")?;
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or("what came is not HTTP")?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let mut reply = Reply { status, headers, body: String::new() };
    let body = &bytes[end + 4..];
    let is_chunked = reply.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    let body = if is_chunked {
        unchunk(body).ok_or("the chunked answer is cut off")?
    } else if let Some(length) = reply.header("content-length").and_then(|text| text.parse::<usize>().ok()) {
        body.get(..length).ok_or("the answer is cut off")?.to_vec()
    } else {
        body.to_vec()
    };
    reply.body = String::from_utf8_lossy(&body).into_owned();
    Ok(reply)
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size.checked_add(2)?..)?;
    }
}

/// Seconds since 1970 of an HTTP date such as "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110 section 5.6.7).
fn unix_of_date(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once(", ")?;
    let mut parts = rest.split(' ');
    let mut next = || parts.next();
    let day: u64 = next()?.parse().ok()?;
    let name = next()?;
    let month = calendar::MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = next()?.parse().ok().filter(|year| (1970..10_000).contains(year))?;
    let clock: Vec<u64> = next()?.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = clock[..] else { return None };
    if next()? != "GMT" || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = calendar::days(year, month, day)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = |text| parse_url(text).unwrap().unwrap();
        assert_eq!(
            url("http://t.example/ice?service=turn#x"),
            Url { is_https: false, host: "t.example".into(), port: 80, path: "/ice?service=turn".into() }
        );
        assert_eq!(url("HTTPS://[2001:db8::7]:8443").port, 8443);
        assert_eq!(url("https://t.example?service=turn").path, "/?service=turn");
        assert_eq!(parse_url("turn:t.example"), None);
        assert_eq!(parse_url("ftp://t.example"), None);
        for (text, why) in
            [("http://a:b@t.example/", "--header"), ("http:///x", "host"), ("http://t.example/a b", "blank")]
        {
            let error = parse_url(text).unwrap().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn dates_become_seconds() {
        assert_eq!(unix_of_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(unix_of_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(unix_of_date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        for wrong in
            ["", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun, 06 Nov 1994 25:49:37 GMT", "Sun, 06 Nov 1994 08:49 GMT"]
        {
            assert_eq!(unix_of_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn replies_end_where_their_header_says() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: Thu, 01 Jan 1970 00:00:09 GMT\r\n\r\n{}junk";
        let reply = parse_reply(plain).unwrap();
        assert_eq!((reply.status, reply.body.as_str(), reply.date()), (200, "{}", Some(9)));
        let chunked = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2;x=y\r\n2]\r\n0\r\n\r\n";
        assert_eq!(parse_reply(chunked).unwrap().body, "[1,2]");
        for cut in [&plain[..76], &chunked[..60], b"hello\r\n\r\n", b""] {
            assert!(parse_reply(cut).is_err());
        }
    }

    #[test]
    fn a_status_has_its_remedy() {
        let step =
            |status_line: &str| status(&parse_reply(format!("HTTP/1.1 {status_line}\r\n\r\n").as_bytes()).unwrap());
        for (line, remedy) in [
            ("401 x", "--header"),
            ("404 x", "/v1/credentials"),
            ("429 x\r\nRetry-After: 7", "Retry-After: 7"),
            ("302 x\r\nLocation: /y", "that URL"),
            ("500 x", "log"),
        ] {
            assert!(step(line).remedy.unwrap().contains(remedy), "{line}");
        }
    }
}
