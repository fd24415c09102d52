//! As much of HTTP/1.1 as a scraper needs, by hand.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// Status and body of `GET path`, asked with this Host.
pub fn get(address: SocketAddr, path: &str, host: &str) -> (u16, String) {
    try_get(address, path, host).unwrap_or_else(|error| panic!("GET {path} of {address}: {error}"))
}

pub fn try_get(address: SocketAddr, path: &str, host: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no end of the header"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| std::io::Error::other(format!("no status in {head:?}")))?, body.to_owned()))
}

/// The values of one scrape.
pub struct Scrape(String);

impl Scrape {
    pub fn of(address: SocketAddr) -> Self {
        let (status, body) = get(address, "/metrics", "localhost");
        assert_eq!(status, 200, "{body}");
        Self(body)
    }

    /// The one series of this name with these labels; all its other labels may be anything.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let mut found = self.0.lines().filter(|line| {
            let of_name = line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            of_name && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        });
        let line = found.next().unwrap_or_else(|| panic!("no series {name} {labels:?} in\n{}", self.0));
        assert!(found.next().is_none(), "more than one series {name} {labels:?}");
        let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no value in {line:?}")) as u64
    }

    /// The sum over all series of this name.
    pub fn sum(&self, name: &str) -> u64 {
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        self.0.lines().filter(of_name).filter_map(value).sum::<f64>() as u64
    }
}
