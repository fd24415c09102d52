//! Finds a running server and asks its admin API: one request, one answer, bounded in size and time.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::check::endpoint::{parse_reply, parse_url};
use crate::cli::Failure;
use crate::config::Environment;
use crate::config::admin::Reach;
use crate::config::checked::HttpListen;

/// How long a server of this machine may take to accept, and to do what it was asked.
const CONNECT_TIME: Duration = Duration::from_secs(3);
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// The longest answer that is read: all revocations there may be.
const ANSWER_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Which server is meant.
#[derive(Args, Clone, Debug, Default)]
pub(in crate::cli) struct Server {
    /// The server's configuration file [default: /etc/throughway/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where it listens, such as http://127.0.0.1:8080 or unix:/run/throughway/http.sock, instead of http.listen
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The file of its token, instead of http.admin_token_file
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    /// Host and port.
    Tcp(String, u16),
    Unix(PathBuf),
}

/// A server that can be asked.
#[derive(Debug)]
pub(in crate::cli) struct Client {
    place: Place,
    /// Where the place was read.
    source: String,
    /// The token, or why there is none.
    token: Result<Option<String>, String>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Server {
    /// Looks the server up; nothing is sent.
    pub(in crate::cli) fn find(&self) -> Result<Client, Failure> {
        let environment = Environment::of_process();
        // With a URL and a token the configuration has nothing to add; with a URL alone it may have the token.
        let reach = match (&self.url, &self.config, &self.token_file) {
            (Some(_), None, Some(_)) => None,
            (Some(_), None, None) => Reach::find(None, &environment).ok(),
            _ => Some(Reach::find(self.config.as_deref(), &environment)?),
        };
        let (place, source) = match (&self.url, &reach) {
            (Some(url), _) => {
                (place_of_url(url).map_err(|why| Failure::Usage(format!("--url {url}: {why}")))?, "--url".to_owned())
            }
            (None, Some(reach)) => (place_of_listen(reach)?, format!("http.listen of {}", reach.source)),
            (None, None) => return Err(Failure::Usage("--url or --config is needed".to_owned())),
        };
        let token = match (&self.token_file, reach.and_then(|reach| reach.token_file)) {
            (Some(file), _) => {
                let token = read_token(file);
                Ok(Some(token.map_err(|error| Failure::Usage(format!("--token-file {}: {error}", file.display())))?))
            }
            (None, Some(file)) => {
                let remedy = "ask as a user who may read it, or name a copy with --token-file";
                read_token(&file)
                    .map(Some)
                    .map_err(|error| format!("can't read the token in {}: {error}; {remedy}", file.display()))
            }
            (None, None) => Ok(None),
        };
        Ok(Client { place, source, token })
    }
}

fn place_of_url(url: &str) -> Result<Place, String> {
    if let Some(path) = url.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        return if path.is_absolute() { Ok(Place::Unix(path)) } else { Err("expected an absolute path".to_owned()) };
    }
    match parse_url(url) {
        Some(Ok(url)) if url.is_https => {
            Err("the admin API has no TLS of its own; ask on the server itself, or through an ssh tunnel".to_owned())
        }
        Some(Ok(url)) if url.path != "/" => Err("expected no path".to_owned()),
        Some(Ok(url)) => Ok(Place::Tcp(url.host, url.port)),
        Some(Err(why)) => Err(why),
        None => Err("expected http://HOST:PORT or unix:/PATH".to_owned()),
    }
}

fn place_of_listen(reach: &Reach) -> Result<Place, Failure> {
    match &reach.listen {
        Some(HttpListen::Tcp(address)) if address.port() == 0 => Err(Failure::Usage(format!(
            "http.listen of {} lets the system choose a port; name it with --url, the server's log has it",
            reach.source
        ))),
        Some(HttpListen::Tcp(address)) => Ok(Place::Tcp(address.ip().to_string(), address.port())),
        Some(HttpListen::Unix(path)) => Ok(Place::Unix(path.clone())),
        None => Err(Failure::Usage(format!(
            "http.listen of {} is \"\", so this server can't be asked anything; set it, or name another server with --url",
            reach.source
        ))),
    }
}

fn read_token(file: &Path) -> io::Result<String> {
    let text = fs::read_to_string(file)?;
    let token = text.lines().next().unwrap_or_default();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(io::Error::other("its first line is no token"));
    }
    Ok(token.to_owned())
}

impl Client {
    /// Asks for something; gives the answer's JSON.
    pub(in crate::cli) fn get(&self, target: &str) -> Result<Value, Failure> {
        self.ask("GET", target, None)
    }

    /// Has something done.
    pub(in crate::cli) fn post(&self, target: &str, body: &Value) -> Result<Value, Failure> {
        self.ask("POST", target, Some(body.to_string()))
    }

    fn ask(&self, method: &str, target: &str, body: Option<String>) -> Result<Value, Failure> {
        let token = match (&self.token, &self.place) {
            (Ok(token), _) => token.as_deref(),
            // The system tells whose process this is; that may be enough.
            (Err(_), Place::Unix(_)) => None,
            (Err(why), Place::Tcp(..)) => return Err(Failure::Run(why.clone())),
        };
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if let Some(token) = token {
            request += &format!("Authorization: Bearer {token}\r\n");
        }
        match body {
            Some(body) => {
                request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
            None => request += "\r\n",
        }
        let bytes = self.exchange(request.as_bytes()).map_err(|error| {
            Failure::Run(format!(
                "no answer from {} ({}): {error}; does the server run there? --config and --url name another",
                self.place, self.source
            ))
        })?;
        let foreign = |what: &str| Failure::Run(format!("what answers at {} is no throughway: {what}", self.place));
        let reply = parse_reply(&bytes).map_err(|what| foreign(&what))?;
        let value: Option<Value> = serde_json::from_str(&reply.body).ok();
        match (reply.status, value) {
            (200, Some(value)) => Ok(value),
            (status, Some(value)) => Err(self.refused(status, &value)),
            (status, None) => Err(foreign(&format!("status {status} without JSON"))),
        }
    }

    fn refused(&self, status: u16, answer: &Value) -> Failure {
        let sentence = answer["error"].as_str().unwrap_or("no reason was given");
        // What is not readable here is the likely cause of what the server says.
        let why = match (&self.token, status) {
            (Err(why), 401 | 403) => format!("; {why}"),
            (Ok(_) | Err(_), _) => String::new(),
        };
        let text = format!("{} says: {sentence}{why}", self.place);
        match answer["reason"].as_str() {
            Some("bad_config") => Failure::Usage(sentence.to_owned()),
            Some("bad_request") => Failure::Usage(text),
            Some(_) | None => Failure::Run(text),
        }
    }

    fn exchange(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        match &self.place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(ANSWER_TIME))?;
                stream.set_write_timeout(Some(ANSWER_TIME))?;
                talk(stream, request)
            }
            Place::Tcp(host, port) => {
                let addresses: Vec<SocketAddr> = (host.as_str(), *port).to_socket_addrs()?.collect();
                let mut last = io::Error::other("the name has no address");
                for address in addresses {
                    match TcpStream::connect_timeout(&address, CONNECT_TIME) {
                        Ok(stream) => {
                            stream.set_read_timeout(Some(ANSWER_TIME))?;
                            stream.set_write_timeout(Some(ANSWER_TIME))?;
                            return talk(stream, request);
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

fn talk(mut stream: impl Read + Write, request: &[u8]) -> io::Result<Vec<u8>> {
    // A server that refuses may close before it has read everything; its answer counts.
    let written = stream.write_all(request);
    let mut bytes = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
    if bytes.is_empty() {
        written?;
        read?;
        return Err(io::Error::other("it closed the connection"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_a_url_without_a_path() {
        assert_eq!(place_of_url("http://127.0.0.1:8080"), Ok(Place::Tcp("127.0.0.1".to_owned(), 8080)));
        assert_eq!(
            place_of_url("http://[::1]:8080/").map(|place| place.to_string()),
            Ok("http://[::1]:8080".to_owned())
        );
        assert_eq!(place_of_url("unix:/run/t.sock"), Ok(Place::Unix("/run/t.sock".into())));
        for (url, why) in [
            ("https://t.example", "ssh tunnel"),
            ("http://t.example/status", "no path"),
            ("unix:t.sock", "absolute"),
            ("127.0.0.1:8080", "http://HOST:PORT"),
        ] {
            assert!(place_of_url(url).unwrap_err().contains(why), "{url}");
        }
    }
}
