//! One GET of a credential endpoint, over an address that is chosen here, so that the report can name it.

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::check::link::Link;
use crate::check::report::Step;
use crate::check::tls::{self, BadCertificate, Trust};
use crate::fetch::{self, FetchError, HttpRequest, HttpResponse, Url, UrlError};

/// The longest answer that is read.
const RESPONSE_BYTES_MAX: usize = 256 * 1024;

/// Takes an http or https URL apart; `None` if it is another scheme.
pub fn parse_url(text: &str) -> Option<Result<Url, String>> {
    let url = match Url::parse(text.split('#').next().unwrap_or_default()) {
        Err(UrlError::Scheme) => return None,
        Err(UrlError::Login) => {
            Err(format!("{text}: {}; give it with --header \"Authorization: ...\"", UrlError::Login))
        }
        Err(error) => Err(format!("{text}: {error}")),
        Ok(url) => Ok(url),
    };
    Some(url)
}

/// Reads a header line as --header has it.
pub(super) fn parse_header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    Some((name.trim().parse().ok()?, HeaderValue::from_bytes(value.trim().as_bytes()).ok()?))
}

/// The clock of who answered, in seconds since 1970.
pub(super) fn date(headers: &HeaderMap) -> Option<u64> {
    let date = httpdate::parse_http_date(text_of(headers, header::DATE)?).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

fn text_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Asks one address; the steps tell what went wrong where there is no answer.
pub(super) async fn get(
    url: &Url,
    address: SocketAddr,
    headers: &[(HeaderName, HeaderValue)],
    trust: &Trust,
    within: Duration,
    now: u64,
) -> (Option<HttpResponse>, Vec<Step>) {
    let stream = match Link::connect(address, within).await {
        Ok(stream) => stream,
        Err(error) => {
            let remedy = format!("check that the endpoint runs and that TCP port {} is open", url.port());
            return (None, vec![Step::fail("reach", error.text(), remedy)]);
        }
    };
    let mut steps = vec![Step::ok("reach", "connected")];
    let usual = [
        (header::ACCEPT, HeaderValue::from_static("application/json")),
        (header::USER_AGENT, HeaderValue::from_static("throughway-check")),
    ];
    let request = HttpRequest {
        method: Method::GET,
        headers: usual.into_iter().chain(headers.iter().cloned()).collect(),
        body: Vec::new(),
        response_bytes_max: RESPONSE_BYTES_MAX,
    };
    let response = if url.is_https() {
        // A header may hold a key, so a certificate that is not right ends it here.
        let (stream, mut seen) =
            tls::handshake(stream, url.host(), trust, BadCertificate::Ends, &["http/1.1"], within, now).await;
        steps.append(&mut seen);
        let Some(stream) = stream else { return (None, steps) };
        fetch::ask_over(stream, url, request, within).await
    } else {
        fetch::ask_over(stream, url, request, within).await
    };
    let response = match response {
        Ok(response) => response,
        Err(FetchError::Timeout(_)) => {
            let text = format!("no answer within {} ms", within.as_millis());
            steps.push(Step::fail(
                "http",
                text,
                "look at the endpoint's log: it accepts connections but does not answer",
            ));
            return (None, steps);
        }
        Err(error) => {
            steps.push(Step::fail("http", error.to_string(), "check that an HTTP server answers on this port"));
            return (None, steps);
        }
    };
    steps.push(status(&response));
    (response.status.is_success().then_some(response), steps)
}

fn status(response: &HttpResponse) -> Step {
    let detail = format!("status {}", response.status.as_u16());
    match response.status.as_u16() {
        200..=299 => Step::ok("http", detail),
        300..=399 => {
            let to = text_of(&response.headers, header::LOCATION).unwrap_or("?");
            Step::fail(
                "http",
                format!("{detail}: it sends us to {}", crate::check::remedy::printable(to)),
                "check that URL instead",
            )
        }
        400 => Step::fail("http", detail, "the endpoint needs other parameters, such as ?service=turn or a username"),
        401 | 403 => Step::fail(
            "http",
            detail,
            "give the key that the endpoint needs, such as --header \"Authorization: Bearer KEY\"",
        ),
        404 | 405 => Step::fail("http", detail, "check the path: throughway answers GET /v1/credentials"),
        429 => {
            let after = text_of(&response.headers, header::RETRY_AFTER);
            let after = after.map(|after| format!(" (Retry-After: {after})")).unwrap_or_default();
            Step::fail("http", detail, format!("asked too often: wait{after}, or raise the rate limit"))
        }
        _ => Step::fail("http", detail, "look at the endpoint's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = |text| parse_url(text).unwrap().unwrap();
        let whole = url("http://t.example/ice?service=turn#x");
        assert_eq!((whole.is_https(), whole.host(), whole.port()), (false, "t.example", 80));
        assert_eq!(whole.target(), "/ice?service=turn");
        let v6 = url("HTTPS://[2001:db8::7]:8443");
        assert_eq!((v6.is_https(), v6.host(), v6.port(), v6.target()), (true, "2001:db8::7", 8443, "/"));
        assert_eq!(url("https://t.example?service=turn").target(), "/?service=turn");
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
    fn the_header_date_is_the_clock_of_who_answered() {
        let date = |text: &str| super::date(&HeaderMap::from_iter([(header::DATE, text.parse().unwrap())]));
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        for wrong in ["", "yesterday", "Sun, 06 Nov 1994 25:49:37 GMT", "Sun, 06 Nov 1994 08:49 GMT"] {
            assert_eq!(date(wrong), None, "{wrong}");
        }
        assert_eq!(super::date(&HeaderMap::new()), None);
    }

    #[test]
    fn a_header_line_is_a_name_and_a_value() {
        let (name, value) = parse_header("Authorization: Bearer a:b").unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("authorization", &b"Bearer a:b"[..]));
        for wrong in ["Authorization", ": x", "A B: x", "A: x\r\nB: y"] {
            assert!(parse_header(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_status_has_its_remedy() {
        let step = |status_code: u16, more: Option<(HeaderName, &'static str)>| {
            let headers = more.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
            status(&HttpResponse { status: status_code.try_into().unwrap(), headers, body: Vec::new() })
        };
        for (code, more, remedy) in [
            (401, None, "--header"),
            (404, None, "/v1/credentials"),
            (429, Some((header::RETRY_AFTER, "7")), "Retry-After: 7"),
            (302, Some((header::LOCATION, "/y")), "that URL"),
            (500, None, "log"),
        ] {
            assert!(step(code, more).remedy.unwrap().contains(remedy), "{code}");
        }
    }
}
