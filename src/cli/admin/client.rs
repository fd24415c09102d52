//! Finds a running server and asks its admin API: one request, one answer, bounded in size and time.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{HeaderValue, Method, StatusCode, header};
use clap::Args;
use serde_json::Value;

use crate::cli::OPTION_FILE_BYTES_MAX;
use crate::config::admin::{AdminSocket, Reach};
use crate::config::checked::HttpListen;
use crate::config::{DEFAULT_PATH, Environment};
use crate::failure::Failure;
use crate::fetch::{self, FetchError, HttpRequest, HttpResponse, Url, UrlError};
use crate::files;

/// How long a server of this machine may take to accept, and to do what it was asked.
const CONNECT_TIME: Duration = Duration::from_secs(3);
const RESPONSE_TIME: Duration = Duration::from_secs(30);

/// The longest answer that is read: all revocations there may be.
const RESPONSE_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Which server is meant.
#[derive(Args, Clone, Debug, Default)]
pub(in crate::cli) struct ServerOptions {
    /// The server's configuration file [default: /etc/throughway/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's address, such as http://127.0.0.1:8080 or unix:/run/throughway/admin.sock, instead of
    /// http.admin_socket or http.listen
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The file with its token, instead of http.admin_token_file
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Where a server's admin API is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum AdminAddress {
    /// A URL without a path.
    Tcp(Url),
    Unix(PathBuf),
}

/// A server that can be asked.
#[derive(Debug)]
pub(in crate::cli) struct Client {
    address: AdminAddress,
    /// Where the address was read.
    source: String,
    /// The token, or why there is none.
    token: Result<Option<String>, String>,
}

impl std::fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(url) => f.write_str(url.to_string().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ServerOptions {
    /// Looks the server up; nothing is sent.
    pub(in crate::cli) fn find(&self) -> Result<Client, Failure> {
        let environment = Environment::of_process();
        // With a URL and a token the configuration has nothing to add; with a URL alone it may have the token.
        let reach = match (&self.url, &self.config, &self.token_file) {
            (Some(_), None, Some(_)) => None,
            (Some(_), None, None) => Reach::find(None, &environment).ok(),
            _ => Some(Reach::find(self.config.as_deref(), &environment)?),
        };
        let (address, source) = match (&self.url, &reach) {
            (Some(url), _) => {
                (address_of_url(url).map_err(|why| Failure::Usage(format!("--url {url}: {why}")))?, "--url".to_owned())
            }
            (None, Some(reach)) => self.address_of(reach)?,
            (None, None) => return Err(Failure::Usage("--url or --config is needed".to_owned())),
        };
        let token = match (&self.token_file, reach.and_then(|reach| reach.token_file)) {
            (Some(file), _) => {
                let token = read_token(file);
                Ok(Some(token.map_err(|error| Failure::Usage(format!("--token-file {}: {error}", file.display())))?))
            }
            (None, Some(file)) => {
                let remedy = "ask as a user that can read it, or give a copy with --token-file";
                read_token(&file)
                    .map(Some)
                    .map_err(|error| format!("can't read the token in {}: {error}; {remedy}", file.display()))
            }
            (None, None) => Ok(None),
        };
        Ok(Client { address, source, token })
    }
}

impl ServerOptions {
    /// The unix socket that needs no token, unless a token can be read; else where `http.listen` is.
    fn address_of(&self, reach: &Reach) -> Result<(AdminAddress, String), Failure> {
        let has_token =
            self.token_file.is_some() || reach.token_file.as_ref().is_some_and(|file| read_token(file).is_ok());
        // The unit's own socket belongs to the unit's configuration: another file means another server.
        let is_units = self.config.as_deref().is_none_or(|file| file == Path::new(DEFAULT_PATH));
        let socket = match &reach.admin_socket {
            Some(AdminSocket::Configured(path)) => Some(path),
            Some(AdminSocket::Default(path)) if is_units && path.exists() => Some(path),
            Some(AdminSocket::Default(_)) | None => None,
        };
        match (socket, &reach.listen) {
            (Some(path), None) => {
                Ok((AdminAddress::Unix(path.clone()), format!("http.admin_socket of {}", reach.source)))
            }
            (Some(path), Some(_)) if !has_token => {
                Ok((AdminAddress::Unix(path.clone()), format!("http.admin_socket of {}", reach.source)))
            }
            (_, _) => Ok((address_of_listen(reach)?, format!("http.listen of {}", reach.source))),
        }
    }
}

fn address_of_url(url: &str) -> Result<AdminAddress, String> {
    if let Some(path) = url.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        return if path.is_absolute() {
            Ok(AdminAddress::Unix(path))
        } else {
            Err("expected an absolute path".to_owned())
        };
    }
    match Url::parse(url) {
        Ok(url) if url.is_https() => {
            Err("the admin API has no TLS of its own; ask on the server itself, or through an ssh tunnel".to_owned())
        }
        Ok(url) if url.target() != "/" => Err("expected no path".to_owned()),
        Ok(url) => Ok(AdminAddress::Tcp(url)),
        Err(UrlError::Scheme) => Err("expected http://HOST:PORT or unix:/PATH".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn address_of_listen(reach: &Reach) -> Result<AdminAddress, Failure> {
    match &reach.listen {
        Some(HttpListen::Tcp(address)) if address.port() == 0 => Err(Failure::Usage(format!(
            "http.listen of {} lets the system choose the port; give it with --url (the server's log shows it)",
            reach.source
        ))),
        Some(HttpListen::Tcp(address)) => Url::parse(&format!("http://{address}"))
            .map(AdminAddress::Tcp)
            .map_err(|error| Failure::Usage(format!("http.listen of {}: {address}: {error}", reach.source))),
        Some(HttpListen::Unix(path)) => Ok(AdminAddress::Unix(path.clone())),
        None => Err(Failure::Usage(format!(
            "http.listen of {} is \"\", and the server has no http.admin_socket, so it has no admin API; set one of them, or give another server with --url",
            reach.source
        ))),
    }
}

/// Why a listener refuses a request before the admin API sees it: those answers are plain text.
fn refused_by_listener(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::REQUEST_TIMEOUT => {
            Some("the request took too long, because the server or this machine is too busy; try again")
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Some("the server, or a proxy before it, is too busy; try again")
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => {
            Some("the request is too long; is the token in the token file the right one?")
        }
        StatusCode::BAD_GATEWAY => {
            Some("a proxy before the server does not reach it; give --url with the server's own address")
        }
        _ => None,
    }
}

fn read_token(file: &Path) -> io::Result<String> {
    let text = files::text(files::read(file, OPTION_FILE_BYTES_MAX)?)?;
    let token = text.lines().next().unwrap_or_default();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(io::Error::other("its first line is not a token"));
    }
    Ok(token.to_owned())
}

impl Client {
    /// Asks for something; gives the answer's JSON.
    pub(in crate::cli) fn get(&self, target: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, target, None, RESPONSE_TIME)
    }

    /// Has something done.
    pub(in crate::cli) fn post(&self, target: &str, body: &Value) -> Result<Value, Failure> {
        self.post_within(target, body, RESPONSE_TIME)
    }

    /// The same for what takes longer than other requests.
    pub(in crate::cli) fn post_within(&self, target: &str, body: &Value, within: Duration) -> Result<Value, Failure> {
        self.ask(Method::POST, target, Some(body.to_string()), within)
    }

    /// Asks for a short text that needs no token; gives the status, whatever it is, and the text.
    pub(in crate::cli) fn plain(&self, target: &str, within: Duration) -> Result<(StatusCode, String), Failure> {
        let headers = vec![(header::HOST, HeaderValue::from_static("localhost"))];
        let request = HttpRequest { method: Method::GET, headers, body: Vec::new(), response_bytes_max: 4096 };
        let response = self
            .exchange(target, request, within)
            .map_err(|error| Failure::Run(format!("no answer from {} ({}): {error}", self.address, self.source)))?;
        Ok((response.status, String::from_utf8_lossy(&response.body).into_owned()))
    }

    /// Where it asks, for messages.
    pub(in crate::cli) fn address(&self) -> String {
        self.address.to_string()
    }

    fn ask(&self, method: Method, target: &str, body: Option<String>, within: Duration) -> Result<Value, Failure> {
        let token = match (&self.token, &self.address) {
            (Ok(token), _) => token.as_deref(),
            // The system tells whose process this is; that may be enough.
            (Err(_), AdminAddress::Unix(_)) => None,
            (Err(why), AdminAddress::Tcp(..)) => return Err(Failure::Run(why.clone())),
        };
        // The server answers to this name always, whatever it is called here.
        let mut headers = vec![(header::HOST, HeaderValue::from_static("localhost"))];
        if let Some(token) = token {
            let bearer = HeaderValue::try_from(format!("Bearer {token}"));
            headers.push((header::AUTHORIZATION, bearer.map_err(|error| Failure::Run(error.to_string()))?));
        }
        if body.is_some() {
            headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
        }
        let body = body.unwrap_or_default().into_bytes();
        let request = HttpRequest { method, headers, body, response_bytes_max: RESPONSE_BYTES_MAX };
        let foreign = |what: &str| Failure::Run(format!("what answers at {} is not throughway: {what}", self.address));
        let response = self.exchange(target, request, within).map_err(|error| {
            let remedy = match &error {
                FetchError::Incomplete => {
                    "the server may have ended meanwhile, and another one may serve: ask again; --config and --url select another"
                }
                FetchError::Http(_) | FetchError::TooLong(_) => return foreign(&error.to_string()),
                FetchError::Connect(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    "ask as root (sudo) or as the server's own user, or give --token-file and --url http://HOST:PORT"
                }
                FetchError::Timeout(_) | FetchError::Connect(_) | FetchError::Tls(_) => {
                    "is the server running there? --config and --url select another"
                }
            };
            Failure::Run(format!("no answer from {} ({}): {error}; {remedy}", self.address, self.source))
        })?;
        let value: Option<Value> = serde_json::from_slice(&response.body).ok();
        match (response.status, value) {
            (StatusCode::OK, Some(value)) => Ok(value),
            (_, Some(value)) => Err(self.refused(&value)),
            (status, None) => match refused_by_listener(status) {
                Some(why) => Err(Failure::Run(format!("{} answered {status}: {why}", self.address))),
                None => Err(foreign("its answer is not from the admin API")),
            },
        }
    }

    fn exchange(&self, target: &str, request: HttpRequest, within: Duration) -> Result<HttpResponse, FetchError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(FetchError::Connect)?;
        let client = fetch::Client::without_tls(CONNECT_TIME, within);
        let response = runtime.block_on(async {
            match &self.address {
                AdminAddress::Unix(path) => client.ask_unix(path, target, request).await,
                AdminAddress::Tcp(url) => {
                    let url = url.join(target).map_err(|error| FetchError::Http(error.to_string()))?;
                    client.ask(&url, request).await
                }
            }
        });
        // A name that is still being looked up must not keep the command.
        runtime.shutdown_background();
        response
    }

    /// The server's answers are for programs, which speak HTTP; a person has flags.
    fn refused(&self, answer: &Value) -> Failure {
        const AS_ROOT: &str = "set http.admin_socket, and ask on the server's machine as root (sudo) with \
             --url unix:PATH, where PATH is that socket; under systemd it is /run/throughway/admin.sock already";
        let sentence = answer["error"].as_str().unwrap_or("no reason was given");
        let reason = answer["reason"].as_str();
        let said = match reason {
            Some("not_set_up") => format!(
                "the server has no token, so its admin API is closed over TCP: {AS_ROOT}; or set http.admin_token_file and \
                 give --token-file FILE"
            ),
            Some("no_token") => format!("a token is needed: give --token-file FILE with the token in http.admin_token_file; or {AS_ROOT}"),
            Some("wrong_token") => format!("this is not the server's token: give --token-file FILE with the token in http.admin_token_file; or {AS_ROOT}"),
            Some("wrong_user") => "this user is not allowed: ask as root (sudo) or as the server's own user, give --token-file FILE, or list the user's id in http.admin_uids"
                .to_owned(),
            Some("host") => "the server does not allow this host name: give --url with 127.0.0.1 or localhost, or list the name in http.hosts"
                .to_owned(),
            Some(_) | None => sentence.to_owned(),
        };
        // What is not readable here is the likely cause of what the server says.
        let why = match (&self.token, reason) {
            (Err(why), Some("not_set_up" | "no_token" | "wrong_token" | "wrong_user")) => format!("; {why}"),
            (Ok(_) | Err(_), _) => String::new(),
        };
        let text = format!("{} says: {said}{why}", self.address);
        match reason {
            Some("bad_config") => Failure::Usage(sentence.to_owned()),
            Some("bad_request") => Failure::Usage(text),
            Some(_) | None => Failure::Run(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_a_url_without_a_path() {
        for (url, shown) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:8080/", "http://[::1]:8080"),
            ("unix:/run/t.sock", "unix:/run/t.sock"),
        ] {
            assert_eq!(address_of_url(url).map(|address| address.to_string()), Ok(shown.to_owned()));
        }
        for (url, why) in [
            ("https://t.example", "ssh tunnel"),
            ("http://t.example/status", "no path"),
            ("unix:t.sock", "absolute"),
            ("127.0.0.1:8080", "http://HOST:PORT"),
        ] {
            assert!(address_of_url(url).unwrap_err().contains(why), "{url}");
        }
    }

    /// What a listener answers before the admin API sees the request is no other program's answer.
    #[test]
    fn a_slow_or_refused_call_is_told_as_what_it_is() {
        use std::io::{Read as _, Write as _};
        let ask = |answer: &'static str| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                assert!(stream.read(&mut request).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let client = Client { address: AdminAddress::Tcp(url), source: "--url".to_owned(), token: Ok(None) };
            let told = client.get("/v1/status").unwrap_err().to_string();
            server.join().unwrap();
            told
        };
        let slow = ask(
            "HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 26\r\nConnection: close\r\n\r\nthe request took too long\n",
        );
        assert!(slow.contains("408 Request Timeout") && slow.contains("try again"), "{slow}");
        assert!(!slow.contains("not throughway"), "{slow}");
        let foreign = ask("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
        assert!(foreign.contains("is not throughway"), "{foreign}");
    }
}
