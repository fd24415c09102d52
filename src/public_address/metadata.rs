//! The metadata services of clouds: what each is asked, and where the addresses are in its answer.
//!
//! They speak plain HTTP on link-local addresses, which nothing outside of the machine's own network can answer. Redirects
//! are not followed, and an answer is bounded in size and time like any other of `fetch`.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use serde_json::Value;

use super::Named;
use crate::config::external::ExternalSource;
use crate::fetch::{Client, HttpRequest, HttpResponse, Url};

/// How long a connection may take, and one request in all: the service is next door.
const CONNECT_TIME: Duration = Duration::from_secs(1);
const REQUEST_TIME: Duration = Duration::from_secs(2);

/// The longest answer that is read: DigitalOcean's whole metadata with its user's data of 64 KiB twice.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Interfaces and public addresses that are looked at.
const ITEMS_MAX: usize = 16;

const IPV4: &str = "http://169.254.169.254";

/// Where the service of each provider is; a later one is asked if nothing answers at the earlier one.
const fn places(source: ExternalSource) -> &'static [&'static str] {
    match source {
        ExternalSource::Stun => &[],
        ExternalSource::Aws => &[IPV4, "http://[fd00:ec2::254]"],
        ExternalSource::Gcp => &[IPV4, "http://[fd20:ce::254]"],
        ExternalSource::Azure | ExternalSource::Hetzner | ExternalSource::DigitalOcean => &[IPV4],
    }
}

/// Asks a provider's service for this machine's public addresses; `at` stands for the place of the service.
pub(super) async fn ask(source: ExternalSource, at: Option<&Url>) -> Result<Vec<Named>, String> {
    let places = match at {
        Some(at) => vec![at.clone()],
        None => places(source).iter().filter_map(|place| Url::parse(place).ok()).collect(),
    };
    let mut last = "there is no such service".to_owned();
    for place in places {
        let service = Service { client: Client::without_tls(CONNECT_TIME, REQUEST_TIME), place };
        let asked = match source {
            ExternalSource::Stun => continue,
            ExternalSource::Aws => aws(&service).await,
            ExternalSource::Gcp => gcp(&service).await,
            ExternalSource::Azure => azure(&service).await,
            ExternalSource::Hetzner => hetzner(&service).await,
            ExternalSource::DigitalOcean => digitalocean(&service).await,
        };
        match asked {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A service at its place.
struct Service {
    client: Client,
    place: Url,
}

type Header = (&'static str, String);

impl Service {
    async fn request(&self, method: Method, target: &str, headers: &[Header]) -> Result<HttpResponse, String> {
        let url = self.place.join(target).map_err(|error| error.to_string())?;
        let headers = headers.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).map_err(|_| format!("{name} can't be sent"))?;
            Ok((HeaderName::from_static(name), value))
        });
        let headers = headers.collect::<Result<_, String>>()?;
        let request = HttpRequest { method, headers, body: Vec::new(), response_bytes_max: ANSWER_BYTES_MAX };
        self.client.ask(&url, request).await.map_err(|error| format!("{}: {error}", shown(&url)))
    }

    /// The body; nothing if there is no such thing.
    async fn get(&self, target: &str, headers: &[Header]) -> Result<Option<HttpResponse>, String> {
        let response = self.request(Method::GET, target, headers).await?;
        match response.status {
            StatusCode::OK => Ok(Some(response)),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(format!("{}{target}: {}", shown(&self.place), status.as_u16())),
        }
    }

    async fn text(&self, target: &str, headers: &[Header]) -> Result<Option<String>, String> {
        let Some(response) = self.get(target, headers).await? else { return Ok(None) };
        let text = String::from_utf8(response.body);
        text.map(Some).map_err(|_| format!("{}{target}: the answer is not text", shown(&self.place)))
    }

    async fn json(&self, target: &str, headers: &[Header]) -> Result<Option<Value>, String> {
        let Some(response) = self.get(target, headers).await? else { return Ok(None) };
        self.parsed(target, &response).map(Some)
    }

    fn parsed(&self, target: &str, response: &HttpResponse) -> Result<Value, String> {
        let parsed = serde_json::from_slice(&response.body);
        parsed.map_err(|error| format!("{}{target}: the answer is not JSON: {error}", shown(&self.place)))
    }

    fn strange(&self, what: &str) -> String {
        format!("{}: {what}", shown(&self.place))
    }
}

fn shown(url: &Url) -> String {
    format!("{}:{}", url.host(), url.port())
}

fn ip(value: Option<&Value>) -> Option<IpAddr> {
    value?.as_str()?.trim().parse().ok()
}

fn items<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().iter().take(ITEMS_MAX)
}

/// The lines of a listing that consist of these characters only: they become part of the next target.
fn listed(text: &str, is_part: fn(char) -> bool) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(|line| line.trim().trim_end_matches('/'));
    lines.filter(move |line| !line.is_empty() && line.chars().all(is_part)).take(ITEMS_MAX)
}

/// Version 2 of the service: a token first, by PUT. Each public address has its list of private ones.
async fn aws(service: &Service) -> Result<Vec<Named>, String> {
    let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "60".to_owned());
    let response = service.request(Method::PUT, "/latest/api/token", &[ttl]).await?;
    if response.status != StatusCode::OK {
        return Err(service.strange(&format!("no token: {}", response.status.as_u16())));
    }
    let token = String::from_utf8(response.body).map_err(|_| service.strange("the token is not text"))?;
    let token = [("x-aws-ec2-metadata-token", token.trim().to_owned())];
    let interfaces = "/latest/meta-data/network/interfaces/macs/";
    let Some(macs) = service.text(interfaces, &token).await? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for mac in listed(&macs, |c| c.is_ascii_hexdigit() || c == ':') {
        let associations = format!("{interfaces}{mac}/ipv4-associations/");
        let Some(publics) = service.text(&associations, &token).await? else { continue };
        for public in listed(&publics, |c| c.is_ascii_digit() || c == '.') {
            let Ok(address) = public.parse() else { continue };
            if found.len() >= ITEMS_MAX {
                return Ok(found);
            }
            let privates = service.text(&format!("{associations}{public}"), &token).await?.unwrap_or_default();
            let locals = privates.lines().take(ITEMS_MAX).filter_map(|line| line.trim().parse().ok());
            found.extend(locals.map(|local| Named { local: Some(local), public: address }));
        }
    }
    Ok(found)
}

/// The service must name itself in its answer, as its documentation says.
async fn gcp(service: &Service) -> Result<Vec<Named>, String> {
    let target = "/computeMetadata/v1/instance/network-interfaces/?recursive=true";
    let response = service.get(target, &[("metadata-flavor", "Google".to_owned())]).await?;
    let response = response.ok_or_else(|| service.strange("there are no network-interfaces"))?;
    if response.headers.get("metadata-flavor").is_none_or(|flavor| flavor != "Google") {
        return Err(service.strange("the answer is not from Google's metadata service (Metadata-Flavor)"));
    }
    let interfaces = service.parsed(target, &response)?;
    let named = items(&interfaces, "").flat_map(|interface| {
        let local = ip(interface.get("ip"));
        let public = items(interface, "/accessConfigs").filter_map(|access| ip(access.get("externalIp")));
        public.map(move |public| Named { local, public })
    });
    Ok(named.collect())
}

/// Public addresses of the standard SKU are told by the part for load balancers only.
async fn azure(service: &Service) -> Result<Vec<Named>, String> {
    let metadata = [("metadata", "true".to_owned())];
    let target = "/metadata/instance/network/interface?api-version=2021-02-01&format=json";
    let interfaces = service.json(target, &metadata).await?;
    let interfaces = interfaces.ok_or_else(|| service.strange("there are no interfaces"))?;
    let mut found: Vec<Named> = Vec::new();
    for interface in items(&interfaces, "") {
        for family in ["/ipv4/ipAddress", "/ipv6/ipAddress"] {
            found.extend(items(interface, family).filter_map(|address| {
                let public = ip(address.get("publicIpAddress"))?;
                Some(Named { local: ip(address.get("privateIpAddress")), public })
            }));
        }
    }
    if found.is_empty() {
        let target = "/metadata/loadbalancer?api-version=2020-10-01&format=json";
        let balancer = service.json(target, &metadata).await?.unwrap_or_default();
        found.extend(items(&balancer, "/loadbalancer/publicIpAddresses").filter_map(|address| {
            let public = ip(address.get("frontendIpAddress"))?;
            Some(Named { local: ip(address.get("privateIpAddress")), public })
        }));
    }
    Ok(found)
}

/// One IPv4 address as text.
async fn hetzner(service: &Service) -> Result<Vec<Named>, String> {
    let target = "/hetzner/v1/metadata/public-ipv4";
    let Some(text) = service.text(target, &[]).await? else { return Ok(Vec::new()) };
    match text.trim() {
        "" => Ok(Vec::new()),
        text => {
            let public = text.parse().map_err(|_| service.strange("public-ipv4 is not an address"))?;
            Ok(vec![Named { local: None, public }])
        }
    }
}

/// A reserved address comes in at the anchor address; all others are the machine's own ones.
async fn digitalocean(service: &Service) -> Result<Vec<Named>, String> {
    let metadata = service.json("/metadata/v1.json", &[]).await?;
    let metadata = metadata.ok_or_else(|| service.strange("there is no metadata"))?;
    let reserved = ["/reserved_ip/ipv4", "/floating_ip/ipv4"].into_iter().find_map(|pointer| {
        let reserved = metadata.pointer(pointer)?;
        reserved.get("active").and_then(Value::as_bool)?.then_some(())?;
        ip(reserved.get("ip_address"))
    });
    let mut found = Vec::new();
    for interface in items(&metadata, "/interfaces/public") {
        let anchor = ip(interface.pointer("/anchor_ipv4/ip_address"));
        found.extend(anchor.zip(reserved).map(|(anchor, public)| Named { local: Some(anchor), public }));
        for own in ["/ipv4/ip_address", "/ipv6/ip_address"] {
            let own = ip(interface.pointer(own));
            found.extend(own.map(|own| Named { local: Some(own), public: own }));
        }
    }
    Ok(found)
}
